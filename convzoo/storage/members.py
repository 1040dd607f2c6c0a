"""What a member of an archive, or a file behind a URL, may be called."""


def member_parts(name: str) -> list[str] | None:
    """Return a member's name as parts of a path inside the folder, or None where it leads out."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    outside = name.startswith("/") or ".." in parts or "\0" in name or (parts and parts[0][1:2] == ":")
    return None if outside else parts
