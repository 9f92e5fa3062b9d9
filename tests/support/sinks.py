"""A sink that keeps files in memory."""


class MemorySink:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, key: str, data: bytes, content_type: str) -> None:
        assert content_type
        self.files[key] = data

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        if key in self.files:
            return False
        self.put(key, data, content_type)
        return True
