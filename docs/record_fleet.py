#!/usr/bin/env python3
"""Records the fleet example in a terminal, and writes docs/fleet.svg, which the README shows.

    pip install pyte
    python3 docs/record_fleet.py [SECONDS]      # 75 by default; needs redis-server

The example runs in a pseudo-terminal; its screen is captured twice a second and played back four times as fast.
"""

import fcntl
import html
import os
import pathlib
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pyte

COLUMNS, ROWS = 88, 34
EACH = 0.5  # seconds between frames
SPEED = 4
WIDTH, HEIGHT, PAD = 8.4, 17, 12  # of a character cell, and of the frame
COLORS = {
    "default": "#d7dae0", "black": "#5c6370", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "yellow": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#ffffff",
}


def capture(seconds):
    """Runs the example, and returns its screens, each a tuple of rows of (text, color, is_bold) runs."""
    root = pathlib.Path(__file__).resolve().parent.parent
    build = ["cargo", "build", "--locked", "--profile", "test", "--all-features", "--example", "fleet"]
    subprocess.run(build, cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        program = str(target / "debug/examples/fleet")
        os.execv(program, [program, "--seconds", str(seconds)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    screens, due = [], time.monotonic()
    while True:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                output = os.read(terminal, 65536)
            except OSError:
                output = b""
            if not output:
                break
            stream.feed(output)
        if time.monotonic() >= due:
            due += EACH
            screens.append(rows_of(screen))
    screens.append(rows_of(screen))
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
        sys.exit("the example failed: nothing is recorded")
    return screens


def rows_of(screen):
    rows = []
    for y in range(ROWS):
        runs = []
        for x in range(COLUMNS):
            cell = screen.buffer[y][x]
            style = (cell.fg, cell.bold)
            if runs and runs[-1][1:] == style:
                runs[-1] = (runs[-1][0] + cell.data, *style)
            else:
                runs.append((cell.data, *style))
        rows.append(tuple(runs))
    return tuple(rows)


def row_markup(row):
    spans, x = [], 0
    for text, color, is_bold in row:
        if text.strip():
            shown = text.rstrip()
            lead = len(shown) - len(shown.lstrip())
            weight = ' font-weight="bold"' if is_bold else ""
            fill = COLORS.get(color, f"#{color}" if len(color) == 6 else COLORS["default"])
            place = f'x="{PAD + (x + lead) * WIDTH:.1f}" textLength="{len(shown.strip()) * WIDTH:.1f}"'
            spans.append(f'<tspan {place} fill="{fill}"{weight}>{html.escape(shown.strip())}</tspan>')
        x += len(text)
    return "".join(spans)


def svg(screens):
    width, height = 2 * PAD + COLUMNS * WIDTH, 2 * PAD + ROWS * HEIGHT
    rows, frames = {}, []
    for number, screen in enumerate(screens):
        uses = []
        for y, row in enumerate(screen):
            if any(text.strip() for text, _, _ in row):
                key = rows.setdefault(row, len(rows))
                uses.append(f'<use href="#r{key}" y="{PAD + (y + 1) * HEIGHT - 4}"/>')
        frames.append(f'<g transform="translate({number * width:.1f})">{"".join(uses)}</g>')
    count = len(screens)
    steps = "".join(
        f"{100 * number / count:.3f}%{{transform:translateX({-number * width:.1f}px)}}" for number in range(count)
    )
    defs = "".join(f'<text id="r{key}" xml:space="preserve">{row_markup(row)}</text>' for row, key in rows.items())
    last = f"translateX({-(count - 1) * width:.1f}px)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">'
        f"<title>kinestream: workers of a fleet share the shards of a stream</title>"
        f"<style>@keyframes play{{{steps}100%{{transform:{last}}}}}"
        f"#film{{animation:play {count * EACH / SPEED:.2f}s step-end infinite}}"
        f"@media (prefers-reduced-motion:reduce){{#film{{animation:none;transform:{last}}}}}</style>"
        f"<defs>{defs}</defs>"
        f'<rect width="100%" height="100%" rx="8" fill="#1e2127"/><g id="film">{"".join(frames)}</g></svg>\n'
    )


def main():
    screens = capture(int(sys.argv[1]) if len(sys.argv) > 1 else 75)
    path = pathlib.Path(__file__).with_name("fleet.svg")
    path.write_text(svg(screens))
    print(f"{path}: {len(screens)} frames, {path.stat().st_size // 1024} KiB")


main()
