"""What a first start works out, worked out now: for an image, whose file system is read-only later.

python -m app.tools.keep    the embedded base on the CPU, in float32 and int8
"""

from __future__ import annotations

from app.tools.workbench import workbench


def main() -> None:
    """Raises BaseRefused, EmbeddedBaseMissing."""
    with workbench(None):
        pass


if __name__ == "__main__":
    main()
