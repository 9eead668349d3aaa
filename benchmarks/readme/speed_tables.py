"""How fast: one function per table, a result in, a short Markdown table out."""

from __future__ import annotations

from benchmarks.readme.cells import grouped, in_group, markdown, number, triple
from benchmarks.readme.results import Result
from engine.contract.sensors import Scenario


def latency(result: Result) -> str:
    """A line per backend, precision and hint."""
    lines = []
    for (backend, precision, hint), mine in grouped(result.rows, "backend", "precision", "hint").items():
        jitter = max(number(row, "jitter_p99_over_p50") for row in mine.values())
        cold = mine[Scenario.FULL]["cold_start_ms"]
        lines.append(
            [
                backend,
                precision,
                hint,
                triple(mine, "single_stream_p50_ms", "{:.1f}"),
                f"{jitter:.2f}",
                triple(mine, "offline_tiles_per_s", "{:.1f}"),
                f"{float(cold) / 1e3:.1f} s" if cold else "",
            ]
        )
    head = ["backend", "precision", "hint", "p50, ms", "p99 / p50 at most", "tiles/s, offline", "cold start"]
    return markdown(head, lines)


def throughput(result: Result) -> str:
    """A line per raster size and sensor setting."""
    lines = [
        [
            f"{number(row, 'mpx'):g} Mpx",
            row["sensors"].replace("+", ", "),
            f"{number(row, 'end_to_end_mpx_per_s'):.1f} Mpx/s",
            f"{number(row, 'stream_tiles_per_s'):.1f} tiles/s",
            f"{number(row, 'stream_over_loop'):.2f}",
            f"{number(row, 'stream_over_saturated'):.2f}",
            f"{number(row, 'peak_rss_mib'):.0f} MiB",
        ]
        for row in result.rows
    ]
    head = ["raster", "sensors", "end to end", "stream", "of the plain loop", "of the backend saturated", "peak memory"]
    return markdown(head, lines)


def soak(result: Result) -> str:
    """The whole flight in a line."""
    total = next(row for row in result.rows if row["minute"] == "all")
    minutes = len(result.rows) - 1
    line = [
        f"{minutes} min at {number(total, 'rate_hz'):g} Hz",
        total["tiles"],
        total["lost"],
        total["switches"],
        f"{number(total, 'p50_ms'):.0f} / {number(total, 'p99_ms'):.0f} ms",
        f"{number(total, 'rss_mib'):.0f} MiB, {number(total, 'rss_slope_mib_per_h'):+.1f} MiB/h",
        total["descriptors_max"],
    ]
    head = [
        "flight",
        "tiles",
        "lost",
        "switches",
        "latency p50 / p99",
        "memory and its slope",
        "file descriptors at most",
    ]
    return markdown(head, [line])


def roofline(result: Result) -> str:
    """A line per backend and precision."""
    lines = [
        [
            backend,
            precision,
            triple(mine, "gmac", "{:.1f}"),
            triple(mine, "tile_ms", "{:.1f}"),
            triple(mine, "floor_ms", "{:.1f}"),
            triple(mine, "share_of_floor", "{:.0f} %", scale=100),
            triple(mine, "share_without_products", "{:.0f} %", scale=100),
        ]
        for (backend, precision), mine in grouped(result.rows, "backend", "precision").items()
    ]
    head = [
        "backend",
        "precision",
        "GMAC",
        "per tile, ms",
        "floor, ms",
        "floor / time",
        "time in nodes without a product",
    ]
    return markdown(head, lines)


# --- beside what one would use instead


def peers(result: Result) -> str:
    """Tiles, a line per library and precision."""
    lines = [
        [
            peer,
            precision,
            triple(mine, "single_stream_ms", "{:.0f}"),
            triple(mine, "single_stream_over_engine", "{:.2f}"),
            triple(mine, "offline_ms", "{:.0f}"),
            triple(mine, "offline_over_engine", "{:.2f}"),
            f"{100 * min(number(row, 'agreement') for row in mine.values()):.2f}",
        ]
        for (peer, precision), mine in grouped(in_group(result, "tile"), "peer", "precision").items()
    ]
    head = ["library", "precision", "one tile at a time, ms", "engine = 1", "as many as it takes, ms", "engine = 1"]
    return markdown([*head, "same class, %"], lines)


def peers_raster(result: Result) -> str:
    """A raster, a line per tiler and precision."""
    lines = [
        [
            peer,
            precision,
            triple(mine, "raster_s", "{:.1f}"),
            triple(mine, "raster_over_engine", "{:.2f}"),
            triple(mine, "raster_over_run", "{:.2f}"),
            f"{100 * min(number(row, 'agreement') for row in mine.values()):.2f}",
        ]
        for (peer, precision), mine in grouped(in_group(result, "raster"), "peer", "precision").items()
    ]
    head = ["tiler", "precision", "seconds", "engine in memory = 1", "engine.run = 1", "same class, %"]
    return markdown(head, lines)


def peers_models(result: Result) -> str:
    """Networks beside the first one, a line per network, library and precision."""
    lines = [
        [
            network,
            peer,
            precision,
            triple(mine, "single_stream_ms", "{:.0f}"),
            triple(mine, "single_stream_over_first", "{:.2f}"),
            triple(mine, "single_stream_speedup_over_first_eager", "{:.1f}"),
        ]
        for (network, peer, precision), mine in grouped(result.rows, "network", "peer", "precision").items()
    ]
    first = result.document["network"]
    head = ["network", "library", "precision", "one tile at a time, ms", f"{first} in the same library = 1"]
    return markdown([*head, f"times as fast as {first} in PyTorch"], lines)
