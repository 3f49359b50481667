"""A web quiz: which tiles are real, which synthetic? Build its set of tiles, serve it, export what visitors said.

    python serve_quiz.py build --real tiles/lung tiles/brain --out quizzes/first \\
        --synthetic generated/rna-gan_lung/GTEX-15RJ7-0625 generated/rna-gan_brain/GTEX-1C6WA-3025
    python serve_quiz.py serve --quiz quizzes/first
    python serve_quiz.py export --quiz quizzes/first

build   Reads folders of tile stores, each named after its tissue, and folders of generate_tissue_images.py.
        Writes <out>/quiz.json, which says what each tile is, and <out>/tiles/*.jpg, which do not: all went through the
        same JPEG round trip, are of one size in pixels, um and bytes, and named by chance. Half are real; tissues,
        and within each its models, have the same number of tiles.
serve   Answers http://127.0.0.1:8000 until it is stopped; writes <quiz>/answers.sqlite. An answer that a visitor was
        told is kept survives kill -9. --study: a participant's code decides tiles and order, nothing can be changed,
        and results are not shown. For others to reach it put a web server with TLS before it (--behind_proxy).
export  Writes answers.csv, a row per answer, and analysis.json into <out> (default <quiz>/results): accuracy,
        d', ROC area by model, tissue and experience, each tile's difficulty, ratings of quality compared, all with
        intervals.
"""

import argparse
import socket
import sys
from pathlib import Path

from common.errors import InputError, command_parser, run_command, shorten
from common.files import atomic_path, make_folder, write_json
from quiz.deck import Deck, check_code
from quiz.store import Store


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: build, serve, export."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = {}
    for name, run, what in (
        ("build", build, "choose tiles and make them alike"),
        ("serve", serve, "answer visitors"),
        ("export", export, "write answers and analysis"),
    ):
        parts[name] = commands.add_parser(
            name, help=what, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parts[name].add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        parts[name].set_defaults(run=run)
    add = parts["build"].add_argument
    add("--real", nargs="+", required=True, help="folders of tile stores, one per tissue")
    add("--synthetic", nargs="+", required=True, help="folders of generated tiles, with manifest.json")
    add("--out", required=True, help="folder of the quiz")
    add("--tiles", type=int, default=200, help="tiles of the quiz, at most (%(default)s)")
    add("--round", type=int, default=20, help="tiles that one visitor sees (%(default)s)")
    add("--split", choices=["train", "val", "test"], help="real tiles of these donors alone; test: held out (all)")
    add("--split_seed", type=int, default=99, help="of the split: that of the GANs (%(default)s)")
    add("--seed", type=int, default=99, help="of the choice of tiles (%(default)s)")
    add("--jpeg_quality", type=int, default=70, help="of the round trip: at most that of the slides (%(default)s)")
    add = parts["serve"].add_argument
    add("--quiz", required=True, help="folder of `build`")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine's (%(default)s)")
    add("--port", type=int, default=8000, help="0: a free one (%(default)s)")
    add("--study", action="store_true", help="visitors enter a participant code")
    add("--codes", help="file of the codes that the study admits, one a line (any code)")
    add("--quality", choices=["optional", "required", "off"], default="optional", help="rating of 1 to 5 (%(default)s)")
    add(
        "--behind_proxy",
        action="store_true",
        help="behind a TLS proxy here that passes Host on: Secure cookie, X-Forwarded-For",
    )
    add("--visits_per_minute", type=int, default=120, help="that one address may begin (%(default)s)")
    add = parts["export"].add_argument
    add("--quiz", required=True, help="folder of `build`")
    add("--out", help="folder to write to; default <quiz>/results")
    add("--seed", type=int, default=99, help="of the bootstraps (%(default)s)")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command."""
    return args.run(args)


def build(args: argparse.Namespace) -> None:
    """Write the quiz; say what is in it and how to start it."""
    from quiz.build import build_quiz, counted

    for name, least in (("tiles", 4), ("round", 2), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: at least {least} was expected")
    if not 1 <= args.jpeg_quality <= 95:
        raise InputError(f"--jpeg_quality {args.jpeg_quality}: a number from 1 to 95 was expected")
    choice = (args.tiles, args.round, args.seed, args.split, args.split_seed, args.jpeg_quality)
    deck, kept = build_quiz(args.real, args.synthetic, args.out, *choice)
    print(f"{args.out}: {len(deck.cards)} tiles of {deck.side} px, {deck.um:.4g} um{', kept' if kept else ''}")
    print(f"  {counted(deck)}; {deck.round} a visit")
    print(f"  python serve_quiz.py serve --quiz {args.out}")


def serve(args: argparse.Namespace) -> None:
    """Answer requests until a signal."""
    if args.visits_per_minute < 1:
        raise InputError(f"--visits_per_minute {args.visits_per_minute}: at least 1 was expected")
    if args.codes and not args.study:
        raise InputError("--codes: belongs to a study; add --study")
    from quiz.app import Options, make_app

    deck, store = open_quiz(args.quiz)
    codes = read_codes(args.codes) if args.codes else None
    limits = {"secure": args.behind_proxy, "visits_per_minute": args.visits_per_minute}
    app = make_app(deck, store, Options(args.study, codes, args.quality, **limits))
    import uvicorn

    listening = listen(args.host, args.port)
    print(f"{args.quiz}: http://{args.host}:{listening.getsockname()[1]} (Ctrl-C stops it)", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses of visitors are nobody's business
        server_header=False,
        proxy_headers=args.behind_proxy,
        forwarded_allow_ips="127.0.0.1" if args.behind_proxy else None,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def export(args: argparse.Namespace) -> None:
    """Write answers.csv and analysis.json; print the analysis."""
    from quiz.analysis import analyse, answer_table, summary

    if not (Path(args.quiz) / "answers.sqlite").exists():
        Deck(args.quiz)
        raise InputError(f"{args.quiz}: nobody has answered yet (no answers.sqlite); serve the quiz first")
    deck, store = open_quiz(args.quiz)
    table = answer_table(store, deck)
    found = analyse(table, args.seed)
    out = make_folder(args.out or Path(args.quiz, "results"))
    with atomic_path(out / "answers.csv") as partial:
        table.to_csv(partial, index=False)
    write_json(out / "analysis.json", {"quiz": deck.digest, **found})
    print("\n".join([*summary(found), f"{out}: answers.csv, analysis.json"]))


def open_quiz(folder: str) -> tuple[Deck, Store]:
    """Return a quiz and its answers."""
    deck = Deck(folder)
    return deck, Store(
        deck.folder / "answers.sqlite", deck.digest, {card.id: card.real for card in deck.cards.values()}
    )


def read_codes(path: str) -> frozenset[str]:
    """Return the codes of a file, one a line. InputError names lines that are none."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    codes = [line for line in lines if line]
    if bad := [f"line {i}" for i, line in enumerate(lines, 1) if line and not check_code(line)]:
        raise InputError(f"{path}: {shorten(bad)}: no code (1 to 32 letters, digits, - and _, one a line)")
    if not codes or len(set(codes)) < len(codes):
        raise InputError(f"{path}: {'a code is there twice' if codes else 'no code in it'}; one code a line, each once")
    return frozenset(codes)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. InputError where the address cannot be had."""
    if not 0 <= port < 65536:
        raise InputError(f"--port {port}: a number from 0 to 65535 was expected")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)  # without TCP's number asyncio leaves Nagle's 40 ms on
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: {error.strerror}; choose another --port (0: a free one)"
        ) from None
    found.listen(2048)
    return found


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
