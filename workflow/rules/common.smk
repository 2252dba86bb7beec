# What the rules share: the configuration, the cohort, and helpers that turn them into inputs, parameters and resources.
import gc
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from functools import cache


def repository():
    """Give the folder of this repository.

    A study may use the workflow as a module of a git host. Snakemake then fetches each file that a rule names; jobs need
    the packages, which are unpacked here once for each commit.
    """
    here = workflow.current_basedir
    if isinstance(here, os.PathLike):
        return Path(here).parents[1]
    git = ["git", "-C", here.repo_path if hasattr(here, "repo_path") else here.hosted_repo.repo_clone]
    commit = subprocess.check_output([*git, "rev-parse", f"{here.ref}^{{commit}}"], text=True).strip()
    folder = Path(".snakemake", "asmil-wsi", commit).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        packed = subprocess.check_output([*git, "archive", commit, "asmil", "pipeline", "workflow", "config.yaml"])
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            # below it, as that folder is its owner's alone, and colleagues read this one
            part = Path(made, commit)
            part.mkdir()
            tarfile.open(fileobj=io.BytesIO(packed)).extractall(part, filter="data")
            try:
                part.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another run that began meanwhile has unpacked the same
                    raise
    return folder


ROOT = repository()
sys.path.insert(0, str(ROOT))

from pipeline import (
    bag_index,
    bucket,
    cluster,
    cohort as cohorts,
    progress,
    pseudonyms,
    running,
    settings,
    stage_flags,
    upgrade,
)
from pipeline.errors import PipelineError
from pipeline.versions import artefact_version

# Planning makes millions of objects that live until its end: looking through them for garbage costs a twentieth of it.
gc.set_threshold(100_000, 20, 100)


def quick(function):
    """Note the parameters of a function that Snakemake calls for each job; it would find them anew each time."""
    function.__signature__ = inspect.signature(function)
    return function


def stop(error):
    """End with the error's one sentence, before any job is planned."""
    sys.exit(f"Error: {error}")


def read_input():
    """Check the configuration and read the cohort, or end with a sentence that says what to mend."""
    try:
        checked = settings.check(CONFIG, ROOT / "workflow" / "schemas" / "config.schema.yaml")
        if "--lint" in sys.argv:  # the rules can be judged without slides
            return checked, cohorts.Cohort({}, {})
        return checked, settings.load_cohort(checked)
    except PipelineError as error:
        stop(error)


def look_at_last_files():
    """Set aside the files that a killed run left torn, so that they are made again."""
    from pipeline import verify  # reads artefacts, which a run is planned without

    verify.after_kill(RESULTS, REPORTS)


def claim_folder():
    """Make this the only run in the folder, also where a killed one left its marks, or end with a sentence."""
    try:
        running.require_room(running.FOLDER, RESULTS, REPORTS)
        running.claim(after_kill=look_at_last_files)
        running.claim_outputs(RESULTS, REPORTS)
    except PipelineError as error:
        stop(error)


# A module has the settings of its study alone.
CONFIG = settings.laid_over(settings.read([ROOT / "config.yaml"]), config)
SETTINGS, COHORT = read_input()


def number_of_folds():
    """Give how many models are trained, or end with a sentence that says what to mend."""
    try:
        return settings.fold_count(SETTINGS, COHORT)
    except PipelineError as error:
        stop(error)


def shown_names():
    """Give the name of every slide in the reports: its own, or a keyed hash (privacy.hash_ids)."""
    private = settings.private(SETTINGS)
    if private is None:
        return {slide: slide for slide in COHORT.slides}
    try:
        hashed = pseudonyms.make(private, keep=not running.only_looks(sys.argv[1:]))
    except PipelineError as error:
        stop(error)
    return {slide: hashed.slide(slide) for slide in COHORT.slides}


SHOWN = shown_names()
SLIDE_SHOWN = {shown: slide for slide, shown in SHOWN.items()}
RESULTS = Path(SETTINGS["paths"]["results"])
REPORTS = Path(SETTINGS["paths"]["reports"])
BAG_INDEX = RESULTS / "model" / "bags.json"
UNRECORDED = RESULTS / "unrecorded"
FOLDS = list(range(number_of_folds()))
PREDICTS, *COMPARED = settings.models(SETTINGS)
MODEL_FOLDERS = {PREDICTS: RESULTS / "model", **{name: RESULTS / "compare" / name for name in COMPARED}}

# A job runs the packages of this checkout, with the interpreter that runs Snakemake unless a deployment method
# (conda, a container) brings its own. Modules that Snakemake itself was started with stay in reach.
shell.prefix(
    f"export PYTHONPATH={shlex.quote(str(ROOT))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    f"export {running.VARIABLE}={shlex.quote(str(Path(running.FOLDER, running.JOBS).absolute()))}; "
    + (
        ""
        if workflow.deployment_settings.deployment_method
        else f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
    )
)

# One GPU job at a time unless the user says otherwise with --resources gpu=N.
if "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", 1)
GPU_LIMIT = int(getattr(workflow.global_resources["gpu"], "value", workflow.global_resources["gpu"]))

# On this machine two embed jobs may stand at each GPU: the second imports, builds its encoder and opens its slide while
# the first computes, and then waits for the GPU's lock. On a cluster the scheduler gives each job a GPU of its own.
if workflow.local_exec:
    workflow.register_resource("gpu_queue", 2 * GPU_LIMIT)


wildcard_constraints:
    slide=r"[^/]+",
    shown=r"[^/]+",
    fold=r"\d+",
    model="|".join(map(re.escape, MODEL_FOLDERS)),


def heatmaps():
    """Give the picture of every slide."""
    return [REPORTS / "heatmaps" / f"{shown}.png" for shown in SLIDE_SHOWN]


def tiles_of_all():
    """Give the tiles of every slide."""
    return [RESULTS / "tiles" / f"{slide}.zarr.zip" for slide in COHORT.slides]


def intermediates():
    """Give what lies between slides and reports: asked for by name, as a damaged file that was removed is made anew."""
    slides = [RESULTS / stage / f"{slide}.zarr.zip" for stage in ("bags", "attention") for slide in COHORT.slides]
    return [*slides, *tiles_of_all()]


def geojsons():
    """Give the squares for QuPath of every slide."""
    return [RESULTS / "attention" / f"{shown}.geojson" for shown in SLIDE_SHOWN]


def lost(wildcards):
    """Give what is asked for only where it is gone: files that a job wrote beside one that is still there.

    Snakemake does not miss a file that nobody asks for; to ask for all of them would make planning slow.
    """
    imported = SETTINGS["encoder"]["weights"] == "imported"  # tiles that came without an outline and a preview
    beside = [
        (RESULTS / "tiles" / f"{slide}.zarr.zip", RESULTS / "tissue" / f"{slide}.{kind}")
        for slide in (() if imported else COHORT.slides)
        for kind in ("geojson", "jpg")
    ]
    beside += [(REPORTS / "heatmaps" / f"{shown}.png", RESULTS / "views" / f"{shown}.json") for shown in SLIDE_SHOWN]
    return [file for made, file in beside if not file.exists() and made.exists()]


def unrecorded(wildcards):
    """Give a file to ask for where the record of the run is not of what lies there, or its copy is not complete."""
    from pipeline import archive, run_record

    current = run_record.is_current(RESULTS / run_record.NAME, results=RESULTS, reports=REPORTS)
    url = SETTINGS["paths"]["archive"]
    if current and (url is None or archive.is_complete(results=RESULTS, url=url)):
        return []
    if not running.only_looks(sys.argv[1:]):  # such a one may look on beside a run, whose file it then is
        UNRECORDED.unlink(missing_ok=True)  # of a run that was killed
    return [UNRECORDED]


def of_the_cohort():
    """Give what is written once for all slides: asked for by name, for the same reason as the intermediates."""
    trained = ("weights.safetensors", "anchor.safetensors", "model.json", "history.csv", "stability.csv")
    files = [RESULTS / name for name in ("check.tsv", "check.txt", "cohort.tsv")]
    files += [RESULTS / "model" / name for name in ("splits.csv", "models.json", "model_card.md", "metrics.json")]
    files += [RESULTS / "compare" / name / "predictions.csv" for name in COMPARED]
    files += [folder / f"fold-{fold}" / name for folder in MODEL_FOLDERS.values() for fold in FOLDS for name in trained]
    return [*files, *agreement_files(), BAG_INDEX, REPORTS / "quality.tsv"]


def bags_of_labelled(wildcards):
    """Give the bags of the labelled slides, the only ones that folds and models depend on."""
    return [RESULTS / "bags" / f"{slide}.zarr.zip" for slide in COHORT.labels]


def agreement_files():
    """Give the comparisons of the folds' maps, of every model."""
    return [RESULTS / "agreement" / f"{name}.{kind}" for name in MODEL_FOLDERS for kind in ("csv", "json")]


def model_files(wildcards):
    """Give what the folds' models consist of: of the job's model, or of the one that predicts."""
    folder = MODEL_FOLDERS[wildcards.get("model", PREDICTS)]
    return [folder / f"fold-{fold}" / name for fold in FOLDS for name in ("weights.safetensors", "model.json")]


def slide_of(wildcards):
    """Give the slide of a job, also where its files bear the name that the reports show; None for the cohort's jobs."""
    return wildcards.get("slide") or SLIDE_SHOWN.get(wildcards.get("shown"))


def artefact_of(stage):
    """Give a slide's artefact for a job whose files bear the name that the reports show: a pattern, or a function."""

    @quick
    def of_job(wildcards):
        return RESULTS / stage / f"{SLIDE_SHOWN[wildcards.shown]}.zarr.zip"

    return of_job if SETTINGS["privacy"]["hash_ids"] else RESULTS / stage / "{shown}.zarr.zip"


@quick
def slide_path(wildcards):
    """Give the slide; a newer time stamp alone is no reason to run again, its content is (see `slide_print`).

    None for one in a bucket: its job fetches it.
    """
    place = COHORT.slides[slide_of(wildcards)]
    return [] if bucket.is_url(place) else ancient(place)


@quick
def slide_place(wildcards):
    """Give where the slide is: a path, or an address in a bucket."""
    return str(COHORT.slides[slide_of(wildcards)])


@cache
def slide_fingerprint(slide):
    return bucket.fingerprint_of(COHORT.slides[slide])


def granted_gpus(stage):
    """Give the GPUs that a job of the stage will be granted: Snakemake lowers what a job asks for to the limit."""
    return min(settings.gpus(SETTINGS, stage, local=workflow.local_exec), GPU_LIMIT)


def of_a_module():
    """Say what a module does not do by itself: Snakemake runs what follows a run only where the main Snakefile says so."""
    if workflow.modifier.is_main_snakefile() or SETTINGS["paths"]["archive"] is None:
        return []
    return [
        "this workflow is used as a module, whose results are copied to paths.archive only if the study's"
        " workflow/Snakefile says so: onsuccess: NAME.onsuccess(), as config/README.md shows"
    ]


def look_ahead():
    """Say what looks odd, and end before any work if the encoder's weights or the division into folds will not do."""
    for warning in [*settings.warnings(COHORT), *of_a_module()]:
        print(f"Warning: {warning}", file=sys.stderr)
    try:
        if not {"--forceall", "-F", "--touch", "-t"} & set(sys.argv):
            upgrade.check_remembered(RESULTS / upgrade.RUN_RECORD, memory=running.FOLDER / "metadata")
        settings.check_encoder(SETTINGS, gpus=granted_gpus("embed"))
        settings.rehearse(SETTINGS, COHORT, {slide: slide_fingerprint(slide) for slide in COHORT.labels})
    except PipelineError as error:
        stop(error)


if workflow.is_main_process and COHORT.slides:
    look_ahead()
    if not running.only_looks(sys.argv[1:]):
        claim_folder()


@quick
def slide_print(wildcards):
    """Give the slide's fingerprint: a replaced file runs again."""
    return slide_fingerprint(wildcards.slide)


@quick
def drawn_files(wildcards):
    """Give what the user drew on the slide: tissue and regions, if any (content counts, see `drawn_digest`)."""
    drawn = COHORT.drawn.get(wildcards.slide, cohorts.Drawn())
    return [ancient(file) for file in (drawn.tissue, drawn.roi) if file is not None]


@quick
def drawn_digest(wildcards):
    """Give a digest of what the user drew: a file that was added, changed or removed runs its slide again."""
    return cohorts.drawn_digest(COHORT.drawn.get(wildcards.slide))


def cohort_digest(wildcards):
    """Give a digest of all slides, labels and overrides."""
    return cohorts.cohort_digest(COHORT, {slide: slide_fingerprint(slide) for slide in COHORT.slides})


def labels_digest(wildcards):
    """Give a digest of the labels of the slides that are present."""
    return cohorts.labels_digest(COHORT.labels)


def flags(stage):
    """Give a stage's settings as flags of its command, or a function that tells those of a slide or a model."""

    @cache
    def written(override, drawn, model):
        return stage_flags.flags(SETTINGS, stage, override=override, drawn=drawn, model=model)

    @quick
    def of_job(wildcards):
        slide = slide_of(wildcards)
        return written(COHORT.overrides.get(slide), COHORT.drawn.get(slide), wildcards.get("model"))

    if stage == "train" or COHORT.overrides or COHORT.drawn:
        return of_job
    alike = written(None, None, None)
    return of_job if "{" in alike else alike  # Snakemake would look for a wildcard's name between the braces


def gpu_of(stage):
    """Give a function that tells the GPUs that a job asks for: none where it would not use one.

    On this machine `embed` asks for a place in the queue before the GPUs instead; see `gpu_queue`. A function, as
    Snakemake says only after the rules are read whether jobs run here (`workflow.local_exec`).
    """

    @quick
    def of_job(wildcards):
        queues = stage == "embed" and workflow.local_exec
        return 0 if queues else settings.gpus(SETTINGS, stage, local=workflow.local_exec)

    return of_job


@quick
def gpu_queue(wildcards):
    """Give the GPUs that an `embed` job will use once it is its turn."""
    return settings.gpus(SETTINGS, "embed", local=workflow.local_exec)


def size_mb(files, wildcards):
    """Give the size of a job's input in MB, with that of the bags behind their index and of its slide in a bucket.

    Faster than Snakemake's `input.size_mb`, which starts an event loop for each job: a tenth of the planning.
    """
    slide = COHORT.slides.get(slide_of(wildcards))
    fetched = slide.size if isinstance(slide, bucket.BucketSlide) else 0
    behind = sum(bag_index.size_bytes(Path(file)) for file in files if file == str(BAG_INDEX))
    return (fetched + behind + sum(os.stat(file).st_size for file in files)) / 2**20


@quick
def with_copies_mb(wildcards, threads):
    """Give the room in MB for temporary files: slides in a bucket are copied there, by `check` one for each thread."""
    own = COHORT.slides.get(slide_of(wildcards))
    slides = COHORT.slides.values() if own is None else [own]
    sizes = sorted(slide.size for slide in slides if isinstance(slide, bucket.BucketSlide))
    return cluster.TEMPORARY_MB + -(-sum(sizes[-threads:]) // 2**20)


# Without a bucket a figure, as a function would be called for each of thousands of jobs.
DISK_MB = with_copies_mb if any(map(bucket.is_url, COHORT.slides.values())) else cluster.TEMPORARY_MB


# Memory and time are reckoned for each job where they count: on a cluster, or under a limit (--resources mem_mb=16000).
# Elsewhere a figure for the stage will do, without a look at thousands of files.
LIMITED = not {"mem_mb", "runtime"}.isdisjoint(workflow.global_resources)


def memory_of(stage):
    """Give a function that tells the memory in MB that a job asks for: more at each attempt."""
    extra = settings.cache_mb(SETTINGS) if stage == "train" else 0

    @quick
    def of_job(wildcards, input, attempt):
        size = 0 if workflow.local_exec and not LIMITED else size_mb(input, wildcards)
        return cluster.memory_mb(stage, input_mb=size, attempt=attempt, extra_mb=extra)

    return of_job


def minutes_of(stage):
    """Give a function that tells the minutes that a job asks for: more at each attempt."""

    @quick
    def of_job(wildcards, input, attempt):
        size = 0 if workflow.local_exec and not LIMITED else size_mb(input, wildcards)
        return cluster.minutes(stage, input_mb=size, attempt=attempt)

    return of_job


# The folder for temporary files, which each node of a cluster names its own.
TMPDIR = quick(lambda wildcards: tempfile.gettempdir())

STAGES = (
    *("check", "tile", "embed", "split", "train", "train_compared", "compare", "agreement", "predict", "heatmap"),
    "report",
)
WATCHES = []


def lift_job_rate():
    """Hand out jobs on this machine as fast as its cores allow, without Snakemake's limit of 100 a second.

    While jobs wait, that limit has Snakemake go through all of them once more for every job that ended, every second
    till the end: with thousands of slides its own process takes a core. On a cluster the limit stays.
    """
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


def watch_progress():
    """Say every so often how far the run is: the jobs that are planned, by what they write."""
    every_s = SETTINGS["progress_s"]
    planned = {stage: [] for stage in STAGES}
    for job in workflow.dag.needrun_jobs():
        if job.rule.name in planned:
            planned[job.rule.name].append(Path(job.output[0]))
    if every_s:
        watched = {stage: files for stage, files in planned.items() if files}
        WATCHES.append(progress.Watch(watched, every_s=every_s, say=lambda line: print(line, file=sys.stderr)))


def end_progress():
    """Say nothing more, as the closing words follow."""
    for watch in WATCHES:
        watch.end()


def ends_the_study():
    """Tell whether this run was for everything, and not for some files or stages of it."""
    return any(job.rule.name == "all" and workflow.dag.finished(job) for job in workflow.dag.jobs)


def record_run():
    """Write what the study is made of, where the run ended it."""
    if not ends_the_study():
        return
    from pipeline import run_record

    prints = {slide: slide_fingerprint(slide) for slide in COHORT.slides}
    written = run_record.outputs(results=RESULTS, reports=REPORTS)
    record = run_record.describe(
        CONFIG,
        COHORT,
        prints,
        weights=settings.weights_print(SETTINGS),
        splits=settings.given_digest(SETTINGS),
        outputs=written,
    )
    run_record.write(RESULTS / run_record.NAME, record)
    UNRECORDED.unlink(missing_ok=True)


def archive_results():
    """Copy results and reports to the bucket that the settings name, or end with the sentence that says why not."""
    if SETTINGS["paths"]["archive"] is None or not ends_the_study():
        return
    from pipeline import archive

    try:
        copied = archive.run(results=RESULTS, reports=REPORTS, url=SETTINGS["paths"]["archive"])
    except PipelineError as error:
        end_progress()
        stop(error)
    print(f"{copied} files copied to {SETTINGS['paths']['archive']}", file=sys.stderr)


def print_summary():
    """Print what was done and where to look."""
    end_progress()
    from pipeline.report import summary

    print(f"\n{summary(REPORTS)}", file=sys.stderr)
    if SHOWN != {slide: slide for slide in COHORT.slides}:
        print(f"Names:       {settings.private(SETTINGS) / pseudonyms.TABLE}", file=sys.stderr)


def print_failure():
    """Say what to do next when a job failed."""
    end_progress()
    print(
        "\nSome jobs failed; the sentence that says why is in the log named above."
        " (an empty log: the job was killed, by the system for want of memory, by its scheduler or by hand)."
        " Everything that was finished is kept: mend the cause and run the same command again.",
        file=sys.stderr,
    )
