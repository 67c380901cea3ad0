"""One self-contained HTML page about a trained model: no library, font or link outside the file."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._config import config as environment
from ..samplers import HybridSampler
from . import _assets
from ._html import chart, duration, escape, flatten, image_tag, number, table
from .curves import distinct_terms, history_terms
from .images import to_uint8, write_atomically
from .matrices import normalised_information
from .samples import as_codes, decode_codes, encode_images, traverse


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    model: Any,
    dataset: Any,
    test_indices: Any,
    history: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    codes: Any = None,
    timings: Mapping[str, Any] | None = None,
    seed: int = 0,
    psnr: tuple[float, int] | None = None,
    num_images: int = 24,
    num_evaluated: int = 512,
    max_latents: int = 16,
) -> Path:
    """Writes report.html (or any ``path``) atomically and returns its path.

    Args:
        title: heading, any text.
        model: a model with ``encode`` and ``decode`` (every class of ``strucfast.models``), on any device.
        dataset: gives ``images(indices)`` uint8 (N, H, W, C); ``name`` and ``factor_names`` if it has them.
        test_indices: (N,) held-out indices; pictures are of ``num_evaluated`` of them, drawn by ``seed``.
        history: records with "step", "split" and loss terms; also "images_per_s" and "seconds" where known.
        config: the run's settings, a plain (nested) dict.
        metrics: name -> result with ``.score``, or a number. "mig" also fills the matrix and the MIG table.
        codes: (N, D) stored codes of training images, for traversals and hybrid samples; by default those of the
            evaluated images.
        timings: name -> seconds (a number) or text; "training" is the training time of the headline.
        seed: makes the choice of images and the hybrid samples the same every time.
        psnr: mean PSNR in dB of held-out images and how many, for the headline; by default of the evaluated images.
        max_latents: rows at most in the traversals and the matrix, those that change the picture most.

    Raises:
        ValueError: no test indices, or codes of another width than the model's.
        OSError: ``path`` cannot be written; nothing half-written is left behind.
    """
    indices = np.asarray(test_indices).reshape(-1)
    if len(indices) == 0:
        raise ValueError("test_indices: expected at least one held-out image, got none")
    for name, value in (("num_images", num_images), ("num_evaluated", num_evaluated), ("max_latents", max_latents)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    chosen = np.random.default_rng(seed).permutation(indices)[:num_evaluated].astype(np.int64)
    originals = to_uint8(np.asarray(dataset.images(chosen)))
    encoded = encode_images(model, originals)
    decoded = decode_codes(model, encoded)
    stored = encoded if codes is None else as_codes(codes)
    if stored.shape[1] != encoded.shape[1]:
        raise ValueError(
            f"codes: expected shape (N, {encoded.shape[1]}) as the model encodes, got {tuple(stored.shape)}"
        )
    metrics = dict(metrics or {})
    timings = dict(timings or {})
    factor_names = [str(name) for name in getattr(dataset, "factor_names", ())]
    errors = np.square((originals.astype(np.float32) - decoded) / 255).mean(axis=(1, 2, 3), dtype=np.float64)
    shares = _shares(metrics.get("mig"))
    sections = [
        ("curves", "Loss", _curves(history)),
        ("reconstructions", "Reconstructions", _reconstructions(originals, decoded, errors, num_images)),
        ("samples", "Hybrid samples", _samples(model, stored, seed)),
        ("traversals", "Traversals", _traversals(model, stored, shares, factor_names, max_latents)),
        ("information", "Information", _information(metrics.get("mig"), shares, factor_names, max_latents)),
        ("scores", "Scores", _scores(metrics, shares, factor_names)),
        ("timings", "Timings", _timings(history, timings)),
        ("config", "Configuration", _config(config)),
        ("versions", "Versions", _versions(model)),
    ]
    sections = [section for section in sections if section[2]]
    tiles = _headline(model, psnr, errors, metrics, history, timings, encoded.shape[1], len(factor_names))
    facts = [str(getattr(model, "name", type(model).__name__)), str(getattr(dataset, "name", "own images"))]
    height, width, channels = originals.shape[1:]
    facts += [f"{width} × {height} × {channels} pixels", f"{encoded.shape[1]} latent variables"]
    page = _page(str(title), facts, tiles, sections)
    return write_atomically(path, page.encode("utf-8", "replace"), "report")


def _page(title: str, facts: list[str], tiles: str, sections: list[tuple[str, str, str]]) -> str:
    # the policy forbids every load from outside, and any script but ours, whatever a title or a config may contain
    digest = base64.b64encode(hashlib.sha256(_assets.JS.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    body = "".join(f'<section id="{key}">{content}</section>' for key, _, content in sections)
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_assets.CSS}</style></head><body>"
        f'<header class="top"><div class="eyebrow">strucfast report</div><h1>{escape(title)}</h1>'
        f'<p class="muted">{escape(" · ".join(facts))}</p><p class="broken"></p>{tiles}</header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>{body}</main>\n'
        f"<footer>Written by strucfast {escape(environment()['strucfast'])} on {written}. "
        f"Everything is inside this file.</footer><script>{_assets.JS}</script></body></html>\n"
    )


def _shares(mig: Any) -> np.ndarray | None:
    if mig is None or not hasattr(mig, "mutual_information"):
        return None
    return normalised_information(mig.mutual_information, mig.factor_entropy)


def _name(names: Sequence[str], place: int) -> str:
    return names[place].replace("_", " ") if place < len(names) else f"factor {place}"


def _psnr(errors: np.ndarray) -> np.ndarray:
    """10 log10(1 / MSE) in dB of each image, for values in [0, 1]; an exact image counts as 100 dB."""
    return -10.0 * np.log10(np.maximum(errors, 1e-10))


def _score(result: Any) -> float | None:
    value = getattr(result, "score", result)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _throughput(history: Sequence[Mapping[str, Any]]) -> float | None:
    rates = [
        record["images_per_s"]
        for record in history
        if record.get("images_per_s") and record.get("split") != "validation"
    ]
    return float(np.median(rates)) if rates else None


def _training_seconds(history: Sequence[Mapping[str, Any]], timings: Mapping[str, Any]) -> float | None:
    seconds = timings.get("training")
    if not isinstance(seconds, (int, float)):
        seconds = max((record["seconds"] for record in history if record.get("seconds") is not None), default=None)
    return None if seconds is None else float(seconds)


def _headline(model, psnr, errors, metrics, history, timings, latent_dim, num_factors) -> str:
    tiles = []
    value, images = (float(_psnr(errors).mean()), len(errors)) if psnr is None else psnr
    tiles.append(("PSNR", f"{value:.1f}", "dB", f"mean of {images:,} held-out images"))
    mig = _score(metrics.get("mig"))
    if mig is None:
        tiles.append(("MIG", "–", "", "needs known factors" if num_factors == 0 else "not computed"))
    else:
        tiles.append(("MIG", number(mig), "", f"{latent_dim} latents, {num_factors} factors"))
    if hasattr(model, "parameters"):
        count = sum(parameter.numel() for parameter in model.parameters())
        rounded, unit = (f"{count / 1e6:.2f}", "M") if count >= 1e6 else (f"{count:,}", "")
        tiles.append(("Parameters", rounded, unit, f"{count:,} in all" if unit else "in all"))
    rate = _throughput(history)
    if rate is not None:
        tiles.append(("Speed", number(rate), "images/s", "median while training"))
    seconds = _training_seconds(history, timings)
    if seconds is not None:
        steps = max((int(record["step"]) for record in history if "step" in record), default=None)
        tiles.append(("Training time", duration(seconds), "", "" if steps is None else f"{steps:,} steps"))
    parts = []
    for name, value, unit, detail in tiles:
        small = f" <small>{escape(unit)}</small>" if unit else ""
        parts.append(
            f'<div class="tile"><dt>{escape(name)}</dt><dd><div class="value">{escape(value)}{small}</div>'
            f'<div class="detail">{escape(detail)}</div></dd></div>'
        )
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    terms = distinct_terms(history_terms(history))
    if not terms:
        return "<h2>Loss curves</h2><p class='note'>The run has no history of losses.</p>"
    charts = "".join(chart(name.replace("_", " ").replace(".", ": "), series) for name, series in terms.items())
    lead = "Over the training step. The numbers in the key are the last values."
    return f'<h2>Loss curves</h2><p class="lead">{lead}</p><div class="charts">{charts}</div>'


def _shown_width(width: int) -> int:
    # whole multiples of the image's own size keep its pixels even
    return max(1, round(88 / width)) * width


def _pictures(items: list[tuple[str, str]], column: int, most: int) -> str:
    figures = "".join(
        f'<figure class="picture">{body}' + (f"<figcaption>{escape(text)}</figcaption>" if text else "") + "</figure>"
        for body, text in items
    )
    # a column is at most 1/most of the row, so that a phone still shows `most` of them side by side
    columns = f"grid-template-columns:repeat(auto-fill,minmax(min({column}px,{100 / most - 3:.0f}%),1fr))"
    return f'<div class="pictures" style="{columns}">{figures}</div>'


def _pairs(originals: np.ndarray, decoded: np.ndarray, errors: np.ndarray, places: Sequence[int]) -> str:
    width = _shown_width(originals.shape[2])
    items = []
    for place in places:
        left = image_tag(originals[place], "original", width)
        right = image_tag(decoded[place], "reconstruction", width)
        items.append((f'<div class="pair">{left}{right}</div>', f"{_psnr(errors[place]):.1f} dB"))
    return _pictures(items, 2 * width + 2, 2)


def _reconstructions(originals: np.ndarray, decoded: np.ndarray, errors: np.ndarray, num_images: int) -> str:
    shown = list(range(min(num_images, len(originals))))
    lead = (
        "Held-out images, original on the left, reconstruction on the right, with the PSNR of each. Picked at random."
    )
    parts = [f'<h2>Reconstructions</h2><p class="lead">{lead}</p>', _pairs(originals, decoded, errors, shown)]
    if len(errors) > 2 * len(shown):
        worst = np.argsort(-errors, kind="stable")[: max(1, num_images // 3)].tolist()
        parts.append(f"<h3>The worst of all {len(errors):,}</h3>" + _pairs(originals, decoded, errors, worst))
    return "".join(parts)


def _samples(model: Any, stored: torch.Tensor, seed: int, count: int = 36) -> str:
    groups = getattr(model, "latent_groups", None)
    sampler = HybridSampler(stored, groups)
    drawn = sampler.sample(count, generator=torch.Generator().manual_seed(seed))
    frames = decode_codes(model, drawn)
    width = _shown_width(frames.shape[2])
    unit = (
        "latent variable" if groups is None or all(len(group) == 1 for group in groups) else "group of latent variables"
    )
    lead = (
        f"New images: each {unit} is drawn by itself from the {len(stored):,} stored codes, so a sample mixes many "
        "training images (Leeb et al., Structure by Architecture)."
    )
    pictures = _pictures([(image_tag(frame, "hybrid sample", width), "") for frame in frames], width, 4)
    return f'<h2>Hybrid samples</h2><p class="lead">{escape(lead)}</p>{pictures}'


def _hint(shares: np.ndarray | None, dim: int, factor_names: Sequence[str]) -> str:
    if shares is None or dim >= len(shares) or shares.shape[1] == 0:
        return ""
    best = int(shares[dim].argmax())
    return f"{_name(factor_names, best)} {shares[dim, best]:.2f}" if shares[dim, best] >= 0.05 else "no single factor"


def _traversals(model: Any, stored: torch.Tensor, shares, factor_names: Sequence[str], max_latents: int) -> str:
    result = traverse(model, stored, steps=9, max_rows=max_latents)
    rows, steps = result.frames.shape[:2]
    lead = (
        f"Each row sweeps one latent variable from the least to the greatest of its {len(stored):,} stored values; "
        "the others stay as in one real code, the one nearest to the mean."
    )
    if shares is not None:
        lead += " Under the name: the factor it tells most about, and the share of that factor's entropy it tells."
    parts = [f'<h2>Latent traversals</h2><p class="lead">{escape(lead)}</p>']
    if rows < stored.shape[1]:
        note = f"Showing {rows} of {stored.shape[1]} latent variables: those whose sweep changes the picture most."
        parts.append(f'<p class="note">{escape(note)}</p>')
    for dim, values, frames in zip(result.dims, result.values, result.frames, strict=True):
        shown = escape(json.dumps([f"{value:.2f}" for value in values]))
        tags = "".join(
            image_tag(frame, f"latent {dim} at {value:.2f}") for frame, value in zip(frames, values, strict=True)
        )
        parts.append(
            f'<div class="sweep" data-values="{shown}"><div class="name">z{dim} <output></output>'
            f'<span class="hint">{escape(_hint(shares, dim, factor_names))}</span></div>'
            f'<div class="player" data-alt="chosen frame of latent {dim}"></div>'
            f'<div class="strip"><div class="frames" style="--steps:{steps}">{tags}</div>'
            f'<div class="ends"><span>{values[0]:.2f}</span><span>{values[-1]:.2f}</span></div>'
            f'<input type="range" min="0" max="{steps - 1}" value="{steps // 2}" aria-label="latent {dim}">'
            "</div></div>"
        )
    return "".join(parts)


def _information(mig: Any, shares: np.ndarray | None, factor_names: Sequence[str], max_latents: int) -> str:
    heading = "<h2>What each latent knows of each factor</h2>"
    if shares is None:
        reason = "The mutual information was not computed for this run."
        if not factor_names:
            reason = "These images come without known factors of variation, so there is no mutual information to show."
        return f'{heading}<p class="note">{reason}</p>'
    kept = np.arange(len(shares))
    note = ""
    if len(shares) > max_latents:
        # every factor's best latent first, then whoever tells most
        order = [*shares.argmax(axis=0), *np.argsort(-shares.max(axis=1), kind="stable")]
        kept = np.sort(list(dict.fromkeys(int(row) for row in order))[:max_latents])
        note = f"Showing the {len(kept)} of {len(shares)} latent variables that tell most about a factor."
        note = f'<p class="note">{note}</p>'
    lead = "Mutual information as a share of the factor's entropy: 1 means the latent alone determines the factor."
    head = "".join(f'<th scope="col">{escape(_name(factor_names, column))}</th>' for column in range(shares.shape[1]))
    information = np.asarray(mig.mutual_information, dtype=np.float64)
    body = []
    for row in kept:
        cells = []
        for column, share in enumerate(shares[row]):
            best = share > 0 and row == int(shares[:, column].argmax())
            classes = " ".join(name for name, on in (("strong", share > 0.6), ("best", best)) if on)
            attribute = f' class="{classes}"' if classes else ""
            cells.append(
                f'<td{attribute} style="--share:{share:.3f}" title="{information[row, column]:.3f} nats">'
                f"{share:.2f}</td>"
            )
        body.append(f'<tr><th scope="row">z{row}</th>{"".join(cells)}</tr>')
    scale = (
        '<div class="scale"><span>0</span><i></i><span>1</span><span>outlined: each factor\'s best latent</span></div>'
    )
    return (
        f'{heading}<p class="lead">{lead}</p>{note}<div class="scroll"><table class="heat">'
        f"<thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{scale}"
    )


def _scores(metrics: Mapping[str, Any], shares: np.ndarray | None, factor_names: Sequence[str]) -> str:
    parts = []
    others = [(name, _score(result)) for name, result in metrics.items() if name != "mig"]
    if others:
        parts.append(table(["metric", "score"], others))
    mig = metrics.get("mig")
    if shares is not None and hasattr(mig, "per_factor"):
        rows = []
        for column, gap in enumerate(np.asarray(mig.per_factor, dtype=np.float64)):
            order = np.argsort(-shares[:, column], kind="stable")
            first = order[0]
            second = shares[order[1], column] if len(order) > 1 else 0.0
            entropy = float(np.asarray(mig.factor_entropy, dtype=np.float64)[column])
            if entropy > 0:
                told = [float(gap), f"z{first}", shares[first, column], second]
            else:
                # a factor with one value: there is nothing to tell, and MIG leaves it out
                told = [None, "–", None, None]
            rows.append([_name(factor_names, column), *told, entropy])
        head = ["factor", "gap", "best latent", "its share", "second best", "entropy (nats)"]
        foot = ["mean: MIG", _score(mig), "", "", "", ""]
        lead = (
            "The mutual information gap (Chen et al., 2018): for each factor, how much more the best latent tells than "
            "the second best, as a share of the factor's entropy. 1 is perfect, 0 means no latent stands out."
        )
        parts.append(f'<h3>Mutual information gap</h3><p class="lead">{escape(lead)}</p>' + table(head, rows, foot))
    return "<h2>Scores</h2>" + "".join(parts) if parts else ""


def _timings(history: Sequence[Mapping[str, Any]], timings: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    seconds = _training_seconds(history, timings)
    if seconds is not None:
        rows.append(("training", duration(seconds)))
    for name, value in timings.items():
        if name != "training" or not isinstance(value, (int, float)):
            timed = isinstance(value, (int, float)) and not isinstance(value, bool)
            rows.append((str(name).replace("_", " "), duration(value) if timed else str(value)))
    rate = _throughput(history)
    if rate is not None:
        rows.append(("median speed while training", f"{number(rate)} images/s"))
    points = [(record["step"], record["images_per_s"]) for record in history if record.get("images_per_s")]
    parts = [f"<div>{table([], rows)}</div>"] if rows else []
    if len(points) > 1:
        steps, rates = zip(*points, strict=True)
        parts.append(f"<div>{chart('speed', {'train': (list(steps), list(rates))}, 'images/s')}</div>")
    return f'<h2>Timings</h2><div class="columns">{"".join(parts)}</div>' if parts else ""


def _config(config: Mapping[str, Any] | None) -> str:
    if not config:
        return ""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in flatten(dict(config)):
        section, _, field = key.rpartition(".")
        groups.setdefault(section, []).append((field, value))
    blocks = [
        "<div>" + (f"<h3>{escape(section)}</h3>" if section else "") + table([], rows) + "</div>"
        for section, rows in groups.items()
    ]
    return (
        "<h2>Configuration</h2><details open><summary>Every setting of the run</summary>"
        f'<div class="flow">{"".join(blocks)}</div></details>'
    )


def _versions(model: Any) -> str:
    facts = environment()
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    device = "cpu" if parameter is None else parameter.device.type
    rows = [(name, str(facts[name])) for name in ("strucfast", "python", "torch")]
    rows += [(name, str(version)) for name, version in facts["packages"].items()]
    machine = [("device", device)] + [(name.replace("_", " "), str(value)) for name, value in facts["machine"].items()]
    machine += [(f"{half} kernels", str(state)) for half, state in facts["halves"].items()]
    return f'<h2>Versions</h2><div class="columns"><div>{table([], rows)}</div><div>{table([], machine)}</div></div>'
