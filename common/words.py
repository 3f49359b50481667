"""Numbers as a person says them."""


def in_words(seconds: float) -> str:
    """Return a duration: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def bytes_in_words(size: float) -> str:
    """Return a size: "7 kB", "12 MB", "1.2 GB"."""
    if size < 9.5e5:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < 9.5e8 else f"{size / 1e9:.3g} GB"
