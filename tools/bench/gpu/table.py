"""The results of a GPU machine as markdown: made of whatever is there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.bench.breakdown import joined
from tools.bench.ceilings import Ceilings
from tools.bench.report import PACKAGES, number

Report = Mapping[str, Any]


def markdown(found: Mapping[str, Any]) -> str:
    """The table of the README, and the whole results below it."""
    parts = found["parts"]
    reports = {name: entry["report"] for name, entry in parts.items() if "report" in entry}
    steps = [report for name, report in reports.items() if name.startswith(("step_", "auto_", "sdpa_"))]
    rows = [row for report in steps for row in rows_of(report)]
    texts = [heading(found, reports), *states(parts)]
    if rows:
        texts += [summary(rows), "Every batch size:", everything(rows, steps)]
    texts += breakdowns(reports)
    texts += [text for name, report in reports.items() for text in further(name, report)]
    return "\n\n".join(texts) + "\n"


def heading(found: Mapping[str, Any], reports: Mapping[str, Report]) -> str:
    seen = found["environment"]
    machines = sorted({report["machine"]["name"] for report in reports.values()} | {seen["machine"]})
    dates = sorted(report["date"][:10] for report in reports.values())
    names = ("CUDA", *PACKAGES)
    versions = ", ".join(f"{name} {seen[name]}" for name in names if seen.get(name, "not installed") != "not installed")
    codes = {entry["code"] for entry in found["parts"].values() if "report" in entry}
    of_codes = f" The parts are of {len(codes)} versions of the code." if len(codes) > 1 else ""
    return (
        f"{' and '.join(machines)}, {versions}, {dates[-1] if dates else 'no date'}, `python -m tools.bench.gpu OUT`."
        f"{of_codes} Images/s of a SimMIM training step, medians; each other system took turns with ours in its mode."
    )


def states(parts: Mapping[str, Any]) -> list[str]:
    """What there is to say of parts that have no figures, and of the kernels' tests."""
    texts = []
    for name, entry in parts.items():
        if name.startswith("kernels_"):
            count = len(entry.get("passed", ()))
            texts.append(f"Tests `{name}`: {count} passed, {entry['state']}{reason_of(entry)}.")
    lacking: dict[str, list[str]] = {}
    for name, entry in parts.items():
        for module in entry.get("missing", ()):
            lacking.setdefault(module, []).append(name)
    texts += [f"Not installed: {module}, for {', '.join(names)}." for module, names in lacking.items()]
    for name, entry in parts.items():
        if entry["state"] == "failed" and not name.startswith("kernels_"):
            texts.append(f"`{name}` failed{reason_of(entry)}")
    unfinished = [name for name, entry in parts.items() if entry["state"] == "unfinished"]
    return [*texts, *([f"Begun and cut off: {', '.join(unfinished)}."] if unfinished else [])]


def reason_of(entry: Mapping[str, Any]) -> str:
    return f": {entry['reason']}" if "reason" in entry else ""


# The steps.


def rows_of(report: Report) -> list[dict[str, Any]]:
    """What a part measured: of one with another system that one, with ours beside it."""
    *_, wanted = report["settings"]["systems"]
    found = []
    for table in report["batches"]:
        ours = next((result for name, result in table["results"].items() if name.startswith("ours")), None)
        for name, result in table["results"].items():
            if name.split()[0] == wanted:
                own = wanted == "ours"
                text = f"{name}, {report['attention']}" if own else name
                row = {"model": model_text(report), "batch": table["batch"], "system": text, "result": result}
                found.append(row | {"ours": own, "beside": None if own else ours})
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each model: every system at its best batch size."""
    lines = ["| model | ours | fastest other, eager | fastest other, compiled | TFLOP/s | of matmul | peak GB |"]
    lines.append("|" + "---|" * 7)
    for label in dict.fromkeys(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == label]
        ours = best(here, lambda row: row["ours"])
        if ours is None:
            continue
        eager = best(here, lambda row: not row["ours"] and not row["system"].endswith("compiled"))
        compiled = best(here, lambda row: not row["ours"] and row["system"].endswith("compiled"))
        others = (beside(ours, other) for other in (eager, compiled))
        result = ours["result"]
        lines.append(
            f"| {label} | **{result['images_per_second']:.0f}** ({ours['system']}, batch {ours['batch']}) | "
            f"{' | '.join(others)} | {result['tflops']:.3g} | {number(result['share_of_matmul_ceiling'], '.0%')} | "
            f"{number(result['peak_memory_gb'], '.1f')} |"
        )
    return "\n".join(lines)


def beside(ours: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    if other is None:
        return "not measured"
    speed = other["result"]["images_per_second"]
    times = ours["result"]["images_per_second"] / speed
    return f"{speed:.0f} ({other['system'].split()[0]}, batch {other['batch']}): {times:.2f} times"


def best(rows: Sequence[Mapping[str, Any]], wanted: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any] | None:
    return max(filter(wanted, rows), key=lambda row: row["result"]["images_per_second"], default=None)


def model_text(report: Report) -> str:
    settings = report["settings"]
    return f"{settings['model']}, {settings['image_size']} px, window {settings['window_size']}"


def everything(rows: Sequence[Mapping[str, Any]], steps: Sequence[Report]) -> str:
    names = ("model", "batch", "system", "images/s", "ours beside it", "times it", "spread", "TFLOP/s", "of matmul")
    lines = [f"| {' | '.join([*names, 'peak GB', 'first step s'])} |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for row in sorted(rows, key=lambda row: (row["model"], row["batch"], row["system"])):
        result, ours = row["result"], row["beside"]
        speed, of_ours = result["images_per_second"], ours and ours["images_per_second"]
        values = (
            *(f"{speed:.1f}", number(of_ours, ".1f"), number(of_ours and of_ours / speed, ".2f")),
            *(f"{result['spread']:.0%}", f"{result['tflops']:.3g}"),
            number(result["share_of_matmul_ceiling"], ".0%"),
            number(result["peak_memory_gb"], ".1f"),
            number(result["first_step_seconds"], ".1f"),
        )
        lines.append(f"| {row['model']} | {row['batch']} | {row['system']} | {' | '.join(values)} |")
    for report in steps:
        for table in report["batches"]:
            for system, reason in table["not_measured"].items():
                lines.append(f"| {model_text(report)} | {table['batch']} | {system} | not measured: {reason} |")
    return "\n".join(lines)


# The others.


def breakdowns(reports: Mapping[str, Report]) -> list[str]:
    """Where a step of ours goes: the places that are there, added up by mode."""
    found: dict[tuple[str, str], list[tuple[Report, Ceilings]]] = {}
    for name, report in reports.items():
        for each in report["breakdown"] if name.startswith("breakdown_") else ():
            found.setdefault((model_text(report), each["mode"]), []).append((each, Ceilings(**report["ceilings"])))
    return [breakdown_text(*key, joined(pieces)) for key, pieces in found.items()]


def breakdown_text(model: str, mode: str, whole: Mapping[str, Any]) -> str:
    lines = [
        f"Where a step of ours goes: {model}, batch {whole['batch']}, {mode}, of {', '.join(whole['places'])}:",
        "",
    ]
    lines += ["| part | ms | of step | TFLOP/s | GB/s | of roofline |", "|" + "---|" * 6]
    for name, part in whole["parts"].items():
        cells = f"{1e3 * part['seconds']:.2f} | {part['share_of_step']:.1%} | {part['tflops']:.3g} | "
        lines.append(f"| {name} | {cells}{part['gb_per_second']:.0f} | {part['share_of_roofline']:.0%} |")
    lines.append(f"| step | {1e3 * whole['step_seconds']:.2f} | {1:.0%} |")
    return "\n".join(lines)


def further(name: str, report: Report) -> list[str]:
    if name.startswith(("parity", "curves_")):
        return [agreement(report)]
    if name.startswith("attention_"):
        return [attention_text(report)]
    if name == "train":
        return [train_text(report)]
    return [loader_text(report)] if name == "loader" else []


def agreement(report: Report) -> str:
    """How far loss curves are apart, as text."""
    settings = report["settings"]
    first = settings["backends"][0]
    apart = (
        f"{name} at most {seen['max']:.1e}, on average {seen['mean']:.1e}"
        for name, seen in report["differences"].items()
    )
    last = report["losses"][first][-1]
    return (
        f"Losses of {settings['steps']} steps, {model_text(report)}, {settings['precision']}, apart from those with "
        f"{first} attention (the last is {last:.4f}): {'; '.join(apart)}."
    )


def attention_text(report: Report) -> str:
    """All blocks of a model together."""
    (table,) = report["batches"]
    lines = [f"Window attention of all blocks, {model_text(report)}, batch {table['batch']}:", ""]
    lines += ["| attention | ms | of matmul | of copy |", "|---|---|---|---|"]
    for name, row in table["total"].items():
        shares = (number(row[key], ".0%") for key in ("share_of_matmul_ceiling", "share_of_copy_ceiling"))
        lines.append(f"| {name} | {1e3 * row['seconds_per_call']:.2f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def train_text(report: Report) -> str:
    lines = [f"The recipe, {report['source']}, on {report['machine']['cores']} cores:", ""]
    lines += ["| train | images/s | of bare step | data wait | memory GB |", "|---|---|---|---|---|"]
    for name, row in report["results"].items():
        cells = (number(row["of_bare_step"], ".2f"), number(row.get("data_wait"), ".1%"))
        memory = number(row.get("memory_gb"), ".1f")
        lines.append(f"| {name} | {row['images_per_second']:.0f} | {' | '.join(cells)} | {memory} |")
    return "\n".join([*lines, *not_measured(report)])


def loader_text(report: Report) -> str:
    lines = [f"Images from JPEGs to the device: {report['source']}; ours decodes by {report['decoder']}:", ""]
    lines += ["| system | workers | images/s | spread |", "|---|---|---|---|"]
    for row in report["results"]:
        cells = f"{row['workers']} | {row['images_per_second']:.0f} | {row['spread']:.0%}"
        lines.append(f"| {row['system']} | {cells} |")
    return "\n".join([*lines, *not_measured(report)])


def not_measured(report: Report) -> list[str]:
    return [f"| {name} | not measured: {reason} |" for name, reason in report["not_measured"].items()]
