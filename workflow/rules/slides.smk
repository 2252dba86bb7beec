# One slide at a time: tissue and tiles, then features.


rule check:
    input:
        labels=ancient(SETTINGS["paths"]["labels"]),
    output:
        checked=RESULTS / "check.tsv",
        summary=RESULTS / "check.txt",
    log:
        RESULTS / "logs" / "check.log",
    # first, so that its warnings come before hours of work. Nothing but the report depends on it: a job behind an ancient
    # input is not looked at when the job in front of that input runs again (docs/adr/0001).
    priority: 100
    conda:
        "../../envs/asmil-wsi.yaml"
    threads: 8
    resources:
        mem_mb=memory_of("check"),
        runtime=minutes_of("check"),
        disk_mb=DISK_MB,
        stalled_after_s=SETTINGS["slide"]["stalled_after_s"],
    params:
        version=artefact_version("check"),
        cohort=cohort_digest,
        given=cohorts.given_digest(COHORT),
        flags=flags("check"),
    shell:
        "python -m pipeline check --cohort {output.checked:q} --summary {output.summary:q} --threads {threads}"
        " --given {params.given} --stalled-after-s {resources.stalled_after_s} {params.flags} 2> {log:q}"


rule tile:
    input:
        slide=slide_path,
        drawn=drawn_files if COHORT.drawn else [],
    output:
        tiles=RESULTS / "tiles" / "{slide}.zarr.zip",
        tissue=RESULTS / "tissue" / "{slide}.geojson",
        preview=RESULTS / "tissue" / "{slide}.jpg",
    log:
        RESULTS / "logs" / "tile" / "{slide}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    resources:
        mem_mb=memory_of("tile"),
        runtime=minutes_of("tile"),
        disk_mb=DISK_MB,
        tmpdir=TMPDIR,
        stalled_after_s=SETTINGS["slide"]["stalled_after_s"],
    params:
        version=artefact_version("tile"),
        slide=slide_place,
        fingerprint=slide_print,
        drawn=drawn_digest if COHORT.drawn else "",
        flags=flags("tile"),
    shell:
        "python -m pipeline tile {params.slide:q} --slide-id {wildcards.slide:q} --tiles {output.tiles:q}"
        " --planned {params.fingerprint} --tissue {output.tissue:q} --preview {output.preview:q}"
        " --stalled-after-s {resources.stalled_after_s} {params.flags} 2> {log:q}"


rule cohort:
    input:
        checked=RESULTS / "check.tsv",
        tiles=tiles_of_all(),
    output:
        cohort=RESULTS / "cohort.tsv",
    log:
        RESULTS / "logs" / "cohort.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    params:
        folder=RESULTS / "tiles",
    shell:
        "python -m pipeline cohort --checked {input.checked:q} --tiles {params.folder:q} --cohort {output.cohort:q}"
        " 2> {log:q}"


rule embed:
    input:
        slide=slide_path,
        tiles=RESULTS / "tiles" / "{slide}.zarr.zip",
    output:
        bag=RESULTS / "bags" / "{slide}.zarr.zip",
    log:
        RESULTS / "logs" / "embed" / "{slide}.log",
    conda:
        "../../envs/asmil-wsi.yaml"
    threads: settings.embed_threads(SETTINGS)
    resources:
        mem_mb=memory_of("embed"),
        runtime=minutes_of("embed"),
        disk_mb=DISK_MB,
        tmpdir=TMPDIR,
        gpu=gpu_of("embed"),
        gpu_queue=gpu_queue,
        # a resource, as another speed is no reason to run again
        speed=settings.embed_speed(SETTINGS),
        stalled_after_s=SETTINGS["slide"]["stalled_after_s"],
    params:
        version=artefact_version("embed"),
        slide=slide_place,
        fingerprint=slide_print,
        weights=settings.weights_print(SETTINGS),
        flags=flags("embed"),
    shell:
        "python -m pipeline embed {params.slide:q} --slide-id {wildcards.slide:q} --tiles {input.tiles:q}"
        " --bag {output.bag:q} --threads {threads} --gpus {resources.gpu_queue} {resources.speed}"
        " --stalled-after-s {resources.stalled_after_s} {params.flags} 2> {log:q}"
