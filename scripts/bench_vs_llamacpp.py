"""What scripts/bench_vs_llamacpp.sh runs once its arguments are checked: DUET RUNS PART,.. LLAMA_BENCH MODEL..."""
import contextlib, datetime, json, os, statistics, struct, subprocess, sys, tempfile, time

DUET, RUNS, ONLY, LLAMA, MODELS = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), os.path.abspath(sys.argv[4]), sys.argv[5:]
SHAPES = {(12, 768): "0.1b", (24, 1024): "0.4b", (24, 2048): "1.5b", (32, 2560): "2.9b", (32, 4096): "7.2b"}
TYPES = {0: ("F32", "f32"), 1: ("F16", "f16"), 2: ("Q4_0", "q4"), 7: ("Q8_0", "q8"), 32: ("BF16", "bf16")}  # general.file_type
VOCABULARY = 65536
BATCHES = (8, 32)
GENERATED, GENERATED_IN_BATCH = 64, 32
TEXT = "The quick brown fox jumps over the lazy dog and runs away into the dark"  # 15 tokens, 16 with token 0


def fail(message):
    sys.exit("bench_vs_llamacpp.sh: " + message)


class Gguf:
    """What the head of a GGUF file says of shape and format."""

    SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}

    def __init__(self, path):
        try:
            with open(path, "rb") as self.file:
                values = self.read()
        except (OSError, struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError, RecursionError) as error:
            fail(f"{path}: {error.strerror if isinstance(error, OSError) else 'damaged: its head cannot be read'}")
        if values is None:
            fail(f"{path}: not a GGUF file of version 2 or 3")
        if values.get("general.architecture") != "rwkv7":
            fail(f"{path}: its architecture is {values.get('general.architecture')}; only rwkv7 can be compared")
        size = values.get("rwkv7.block_count", 0), values.get("rwkv7.embedding_length", 0)
        if size not in SHAPES:
            fail(f"{path}: {size[0]} layers of width {size[1]}; `duet bench --shape` has " + ", ".join(f"{l} of {w} ({n})" for (l, w), n in SHAPES.items()))
        if values.get("tokenizer.ggml.tokens") != VOCABULARY:
            fail(f"{path}: a vocabulary of {values.get('tokenizer.ggml.tokens', 0)}; `duet bench --shape` has {VOCABULARY}")
        if values.get("general.file_type") not in TYPES:
            fail(f"{path}: its general.file_type is {values.get('general.file_type')}; there are " + ", ".join(f"{k} ({t})" for k, (t, _) in TYPES.items()))
        self.path, (self.layers, self.width), self.shape = path, size, SHAPES[size]
        self.type, self.dtype = TYPES[values["general.file_type"]]

    def take(self, code):
        return struct.unpack("<" + code, self.file.read(struct.calcsize("<" + code)))[0]

    def text(self):
        return self.file.read(self.take("Q")).decode()

    def value(self, kind):  # an array is its length
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, length = self.take("I"), self.take("Q")
            for _ in range(length):
                self.value(kind)
            return length
        return self.take(self.SCALARS[kind])

    def read(self):
        if self.file.read(4) != b"GGUF" or self.take("I") not in (2, 3):
            return None
        self.take("Q")  # tensors
        return {self.text(): self.value(self.take("I")) for _ in range(self.take("Q"))}


def cores():
    """One CPU of each physical core that this process may use, as duet counts them."""
    first = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                first.setdefault(file.read(), cpu)
        except OSError:
            first[cpu] = cpu
    return sorted(first.values())


CPUS = cores()
THREADS = str(len(CPUS))


def run(*words):
    """Standard output, seconds, peak memory in bytes."""
    # llama.cpp's threads share a core at times unless OpenMP holds each on its own; Duet's are pinned without being told
    environment = os.environ | ({} if words[0] == DUET else {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"})
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        begin = time.monotonic()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=error, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, CPUS))
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), error.seek(0)
        if process.returncode:
            fail(f"{' '.join(words)}\nended with {process.returncode}: " + error.read().decode(errors="replace")[-2000:].strip())
        return out.read().decode(errors="replace"), seconds, used.ru_maxrss * 1024


def duet_bench(*words):
    return json.loads(run(DUET, "bench", *words, "--backend", "cpu", "--repeat", "1", "--threads", THREADS, "--json", "--quiet")[0])


def llama_bench(model, prompt, generated):
    out, _, memory = run(LLAMA, "-m", model.path, "-p", str(prompt), "-n", str(generated), "-r", "1", "-t", THREADS, "-o", "json")
    try:
        return json.loads(out)[0]["avg_ts"], memory
    except (ValueError, LookupError, TypeError):
        fail(f"{LLAMA} -o json gave no figures; is it llama-bench?\n{out[-2000:]}")


def same_shape(model):
    return "--shape", model.shape, "--dtype", model.dtype


def generation(model, _):
    def duet():
        figures = duet_bench(*same_shape(model), "--prompt-tokens", "1", "--gen-tokens", str(GENERATED))
        step = figures["generation"][0]
        limits.append((figures["memory_bytes_per_second"], step["bytes_per_second"], step["share_of_memory_limit"]))
        return [step["tokens_per_second"]]

    limits = []
    compare(["generation, tok/s"], lambda: [llama_bench(model, 0, GENERATED)[0]], duet)
    limit, read, share = (statistics.median(column) for column in zip(*limits))
    print(f"  duet reads {read / 1e9:.1f} GB/s of weights; the memory streams at {limit / 1e9:.1f} in the same runs: {share:.0%}")


def prompt(model, _):
    compare(["prompt of 512, tok/s"], lambda: [llama_bench(model, 512, 0)[0]],
            lambda: [duet_bench(*same_shape(model), "--prompt-tokens", "512", "--gen-tokens", "1")["prompt"][0]["tokens_per_second"]])


def batch(model, _):
    def llama():
        out = run(program, "-m", model.path, "-c", "2048", "-npp", "8", "-ntg", str(GENERATED_IN_BATCH), "-npl", ",".join(map(str, BATCHES)), "-t", THREADS, "--output-format", "jsonl")[0]
        speeds = [json.loads(line)["speed_tg"] for line in out.splitlines() if line.startswith("{")]
        return speeds if len(speeds) == len(BATCHES) else fail(f"{program} gave {len(speeds)} figures, not {len(BATCHES)}:\n{out[-2000:]}")

    def duet():
        figures = duet_bench(*same_shape(model), "--prompt-tokens", "1", "--gen-tokens", str(GENERATED_IN_BATCH), "--batch", ",".join(map(str, BATCHES)))
        return [g["tokens_per_second"] for g in figures["generation"]]

    program = beside("llama-batched-bench")
    if program:
        compare([f"{n} sequences, tok/s in all" for n in BATCHES], llama, duet)


def memory(model, file):
    compare(["peak memory, MiB (less is better)"], lambda: [llama_bench(model, 512, 8)[1] / 2**20],
            lambda: [duet_bench("--model", file, "--prompt-tokens", "512", "--gen-tokens", "8")["peak_memory_bytes"] / 2**20], runs=1)


def first_token(model, file):
    def llama():
        return [run(program, "-m", model.path, "-p", TEXT, "-n", "1", "-c", "512", "-no-cnv", "--no-warmup", "-t", THREADS)[1]]

    def duet():
        return [run(DUET, "generate", "--model", file, "--prompt", TEXT, "--max-tokens", "1", "--backend", "cpu", "--threads", THREADS, "--quiet")[1]]

    program = beside("llama-completion")
    if program:
        llama(), duet()  # both files into the page cache
        compare(["first token of 16, whole process, s (less is better)"], llama, duet)


def beside(name):
    path = os.path.join(os.path.dirname(LLAMA), name)
    if os.access(path, os.X_OK):
        return path
    print(f"  no {name} beside llama-bench: not compared")


def compare(names, llama, duet, runs=None):
    """Each engine's figures, one a name, in turn."""
    pairs = [(llama(), duet()) for _ in range(runs or RUNS)]
    for name, theirs, ours in zip(names, zip(*(pair[0] for pair in pairs)), zip(*(pair[1] for pair in pairs))):
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"  {name:53}{spread(theirs):>27}{spread(ours):>27}{ratio:8.2f}  {span([o / t for o, t in zip(ours, theirs)])}", flush=True)


def number(x):
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}"


def span(values):
    return f"({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""


def spread(values):
    return f"{number(statistics.median(values))} {span(values)}".strip()


@contextlib.contextmanager
def model_file(model, wanted):
    """A file for duet in the shape and format of the GGUF file; what needs none goes without."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="duet-bench-") as folder:
        fresh, file = os.path.join(folder, "fresh.safetensors"), os.path.join(folder, "model.safetensors")
        run(DUET, "init", "--layers", str(model.layers), "--embd", str(model.width), "--vocab-size", str(VOCABULARY), "--dtype", "bf16", "--quiet", fresh)
        run(DUET, "convert", fresh, file, "--dtype", model.dtype, "--quiet")
        os.remove(fresh)
        os.sync()  # or writing it back would disturb what follows
        yield file


PARTS = {"generation": generation, "prompt": prompt, "batch": batch, "memory": memory, "first-token": first_token}

def main():
    models = [Gguf(path) for path in MODELS]
    with open("/proc/cpuinfo") as file:
        processor = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "processor unknown")
    print(f"{datetime.date.today()}, {processor}, {THREADS} threads on CPUs {','.join(map(str, CPUS))}, {run(DUET, '--version')[0].strip()}")
    for model in models:
        print(f"\n{model.path}: shape {model.shape}, {model.type} against --dtype {model.dtype}; medians of {RUNS} in turn (least to most)")
        print(f"  {'':53}{'llama.cpp':>27}{'duet':>27}{'ratio':>8}  of pairs", flush=True)
        with model_file(model, {"memory", "first-token"} & set(ONLY)) as file:
            for name, part in PARTS.items():
                if name in ONLY:
                    part(model, file)


try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
