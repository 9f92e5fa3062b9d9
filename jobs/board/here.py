"""The board of a request, as an argument of its route."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from jobs.board.board import Board


def _board(request: Request) -> Board:
    board: Board = request.app.state.board
    return board


Here = Annotated[Board, Depends(_board)]
