"""A sink that keeps files in memory."""


class MemorySink:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        assert content_type
        self.files[key] = data

    def size(self, key: str) -> int | None:
        return len(self.files[key]) if key in self.files else None

    def get(self, key: str) -> bytes:
        return self.files[key]

    def delete(self, key: str) -> None:
        self.files.pop(key, None)

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        if key in self.files:
            return self.files[key] == data
        self.put(key, data, content_type)
        return True
