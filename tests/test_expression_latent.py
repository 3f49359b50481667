"""A stranger's matrix meets a checkpoint: the same profile gives the same latent, whatever its file looks like."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_betavae import GENES as N_GENES
from test_betavae import made_state
from test_expression_prepare import command, write

from common.checkpoint import save_checkpoint
from common.errors import InputError
from datasets.expression import read_expression
from datasets.prepare_table import prepare_table
from models.betavae import TrainedVAE
from sources.profiles import Profiles

IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]  # made_state's genes, which have version 1
SAMPLES = [f"GTEX-{letter}-0626-SM-1" for letter in "ABCDE"]
HASTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = {  # how a file may name gene i, given a number
    "Ensembl": lambda i, n: IDS[i],
    "version": lambda i, n: f"{IDS[i]}.{n}",
    "lifted": lambda i, n: f"{IDS[i]}.{n}_{n % 9}",  # GENCODE on GRCh37
    "rna_": lambda i, n: f"rna_{IDS[i]}.{n}",
    "symbol": lambda i, n: f"SYM{i}",
    "alias": lambda i, n: f"ALIAS{i}" if (i + n) % 2 else f"OLD{i}",
}
# delimiter, decimal sign, byte-order mark, genes in columns
FORMS = st.tuples(st.sampled_from(["\t,", "\t.", ";,", ";.", ",."]), st.booleans(), st.booleans())


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A seeded VAE's folder, a mapping, five profiles (TPM, samples x genes) and what they bring to the generator."""
    root = tmp_path_factory.mktemp("latent")
    state, values = made_state()
    save_checkpoint(root / "vae/best.pt", "betavae", state)
    rows = "".join(f"{i}\tSYM{i}\tALIAS{i}|X{i}\tOLD{i}\t{gene}\n" for i, gene in enumerate(IDS))
    write(root / "names.tsv", "hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id\n" + rows)
    profiles = values[:5].numpy()
    profiles[:, 3] += 40  # above every log
    mu = TrainedVAE.from_state(state).encode(torch.from_numpy(profiles))
    return root, pd.DataFrame(profiles, index=SAMPLES, columns=IDS), (mu - mu.mean(0)).numpy()


def text_of(frame, form):
    """Return the table `frame` (samples x genes) in a form, and where a value is: (gene, sample) -> line, column."""
    (delimiter, decimal), mark, turned = form
    frame = frame if turned else frame.T
    text = "\ufeff" * mark + frame.rename_axis("name").to_csv(sep=delimiter, decimal=decimal)
    lines, columns = list(frame.index), list(frame.columns)
    return text, lambda gene, sample: (
        lines.index(sample if turned else gene) + 2,
        columns.index(gene if turned else sample),
    )


def latent_of(root, matrix, *flags):
    """Return the latents of a matrix's samples, in the order of SAMPLES, by the commands that a user types."""
    words = ["--input", matrix, "--checkpoint", root / "vae", "--mapping", root / "names.tsv", "--out", root / "o.h5ad"]
    assert command(*words, *flags) == 0
    profiles = Profiles(root / "vae", read_expression(root / "o.h5ad"))
    mu = profiles.conditions(SAMPLES) * (profiles.std + 1e-6)  # the standardisation undone, up to the mean
    return (mu - mu.mean(0)).numpy()


@HASTY
@given(st.permutations(range(N_GENES)), st.permutations(range(5)), st.sampled_from([*NAMES]), st.integers(1, 99), FORMS)
def test_no_order_name_version_or_form_changes_the_latent(known, genes, samples, naming, number, form):
    root, frame, latent = known
    frame = frame.iloc[list(samples), list(genes)]
    frame.columns = [NAMES[naming](i, number) for i in genes]
    path = write(root / "m_tpm.txt", text_of(frame, form)[0])
    assert np.allclose(latent_of(root, path), latent, atol=1e-5)


@HASTY
@given(
    st.integers(0, N_GENES - 1),
    st.integers(0, 4),
    st.sampled_from(
        [
            ("", "missing"),
            ("NaN", "missing"),
            ("inf", "infinite"),
            ("1e99", "infinite"),
            ("-1.5", "negative"),
            ("x", "'x'"),
        ]
    ),
    FORMS,
)
def test_a_bad_value_anywhere_in_any_form_is_named_by_line_and_column(known, gene, sample, bad, form):
    root, frame, _ = known
    gene, sample = IDS[gene], SAMPLES[sample]
    (field, problem), ((delimiter, decimal), _, _) = bad, form
    text, place = text_of(frame, form)
    line, column = place(gene, sample)
    lines = text.splitlines()
    fields = lines[line - 1].split(delimiter)
    fields[column + 1] = field.replace(".", decimal)
    lines[line - 1] = delimiter.join(fields)
    path = write(root / "m_tpm.txt", "\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        prepare_table(path)
    message = str(error.value)
    assert message.startswith(f"{path}: line {line} (") and "\n" not in message
    assert f"column {lines[0].split(delimiter)[column + 1]}: " in message and problem in message


@HASTY
@given(st.sampled_from(["log2p1", "ln1p", "log10p1"]), st.booleans(), st.permutations(range(300)), st.integers(0, 999))
def test_a_logged_matrix_gives_the_table_of_the_linear_one(tmp_path, log, turned, order, seed):
    linear = np.random.default_rng(seed).gamma(0.3, 100, (3, 300))
    linear *= 1e6 / linear.sum(1, keepdims=True)
    base = {"log2p1": 2, "ln1p": np.e, "log10p1": 10}[log]
    frame = pd.DataFrame(
        np.log1p(linear) / np.log(base), index=list("abc"), columns=[f"ENSG{i:011d}" for i in range(300)]
    )
    frame = frame.iloc[:, list(order)]
    table, report = prepare_table(write(tmp_path / "m_tpm.csv", (frame if turned else frame.T).to_csv()))
    assert report["found"]["log"] == log
    assert np.allclose(table.aligned(sorted(frame.columns))[0], linear, rtol=1e-4, atol=1e-3)


def test_the_weight_of_a_gene_is_its_share_of_the_first_layer(known):
    vae, _ = TrainedVAE.open(known[0] / "vae")
    weights = vae.gene_weights().numpy()
    first = vae.state["model"]["encoder.1.weight"].numpy().astype(np.float64)  # (hidden, genes)
    assert weights.sum() == pytest.approx(1) and weights == pytest.approx((first**2).sum(0) / (first**2).sum())


def test_the_report_names_what_the_checkpoint_misses_and_what_it_weighs(known, capsys):
    root, frame, _ = known
    weights = dict(zip(IDS, TrainedVAE.open(root / "vae")[0].gene_weights().tolist(), strict=True))
    gone, silent = [IDS[2], IDS[7]], IDS[5]
    other = frame.drop(columns=gone).assign(**{silent: 0.0, "ENSG00000000099": 5.0})
    path = write(root / "m_tpm.csv", other.to_csv())
    words = ["--input", path, "--checkpoint", root / "vae", "--mapping", root / "names.tsv", "--out", root / "c.csv"]
    assert command(*words) == 0
    out = capsys.readouterr().out
    report = json.loads((root / "c.report.json").read_text())
    assert report["checkpoint"]["unit"] == "TPM" and len(report["checkpoint"]["digest"]) == 64
    found = report["coverage"]
    assert (found["expected"], found["present"], found["coverage"]) == (12, 10, pytest.approx(10 / 12))
    heaviest = sorted(gone, key=lambda gene: -weights[gene])
    assert [(m["gene"], m["symbol"]) for m in found["missing"]] == [(f"{g}.1", f"SYM{IDS.index(g)}") for g in heaviest]
    assert [m["weight"] for m in found["missing"]] == pytest.approx([weights[gene] for gene in heaviest])
    assert found["weight_present"] == pytest.approx(1 - sum(weights[gene] for gene in gone))
    assert [m["gene"] for m in found["zero_in_all_samples"]] == [f"{silent}.1"]
    assert found["weight_zero_in_all_samples"] == pytest.approx(weights[silent])
    assert f"10 of the 12 genes of {root}/vae (83.3%, " in out and "of the encoder's weight); missing: SYM" in out
    assert "0 in every sample: SYM5" in out
    table = read_expression(root / "c.csv")
    assert table.genes == [f"{gene}.1" for gene in IDS if gene not in gone]  # the checkpoint's order and spelling
    assert np.isnan(table.aligned([f"{gone[0]}.1"], 0)[0]).all()  # left out, never 0

    assert command(*words, "--min_coverage", "0.9") == 2
    error = capsys.readouterr().err
    assert "10 of the 12 genes of" in error and "at least 90% of the genes were expected" in error
    assert error.count("\n") == 1 and "missing: SYM" in error
    write(path, frame.iloc[:, :9].to_csv())  # 75 %: below the checkpoint's own 80 %
    assert command(*words) == 2 and "at least 80% of the genes" in capsys.readouterr().err
    assert command(*words, "--min_coverage", "0.75") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--checkpoint", "{root}/vae", "--genes", "{root}/g.csv"],
            "--checkpoint names the genes; leave one of them out",
        ),
        (["--checkpoint", "{root}/none"], "none: no such checkpoint or run folder"),
        (
            ["--checkpoint", "{root}/vae", "--unit", "counts"],
            "m_tpm.csv: is in counts, TPM was expected; make the table",
        ),
        (["--min_coverage", "0.9"], "--min_coverage needs the genes that are wanted; name them with --checkpoint"),
        (["--genes", "{root}/g.csv", "--min_coverage", "80"], "--min_coverage 80: a share from 0 to 1 was expected"),
        (
            ["--genes", "{root}/g.csv", "--min_coverage", "0.6"],
            "g.csv (50.0%); missing: ENSG00000000777.1; at least 60%",
        ),
    ],
)
def test_a_checkpoint_or_list_that_does_not_fit_is_refused(known, capsys, flags, message):
    root, frame, _ = known
    write(root / "m_tpm.csv", frame.round().to_csv())
    write(root / "g.csv", f"Gene\nrna_{IDS[0]}.1\nrna_ENSG00000000777.1\n")
    given = [word.format(root=root) for word in flags]
    given += [] if "--unit" in given else ["--unit", "tpm"]
    assert command("--input", root / "m_tpm.csv", "--out", root / "refused.csv", *given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(root.glob("refused*"))
