"""Every field of a training run, its meaning, and the value it has where a config says nothing.

A config (`configs/*.py`) starts from this and changes what it needs; the command line changes any
field, as `--config.train.steps=50`. Free of JAX, so that a config is read in no time.
"""

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The fields; where they are checked: `train_config.py`."""
    config = ConfigDict()
    config.seed = 0
    # Trace: skip so many steps of this start, then trace so many into workdir/profile (0: none).
    config.profile_steps = (0, 0)

    # Where to start: "embedded:smollm2", a Hugging Face directory or hub id, or a .gguf file.
    config.model = ConfigDict({"source": "embedded:smollm2"})
    config.model.num_layers = 0  # the first k layers alone; 0: all
    config.model.dtype = "bfloat16"  # of the products; weights and rewards are float32
    config.model.remat = "projections"  # "none", "projections" or "full": see model.REMAT
    config.model.attention = "auto"  # by device; "plain", "splash" or "cudnn": flash_attention.py

    # Sizes of the mesh; one may be -1 and takes the devices left over.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1})

    config.data = ConfigDict()
    # Preference files (JSON lines), or folders of ArrayRecord files (synth). "embedded:bfcl": built
    # from the BFCL wheel, in workdir/pairs.
    config.data.train = "embedded:bfcl"
    config.data.heldout = "embedded:bfcl"
    config.data.wrong_per_task = 3
    # Leave out tools and conversation: what do the answers alone give away?
    config.data.blind = False
    # Row shapes: tokens, and the most responses among them. One compilation each.
    config.data.row_shapes = ((2048, 64),)
    config.data.max_tokens = 0  # leave out examples longer than this; 0: than the longest row
    config.data.batch_tokens = 4096  # per micro-batch, padding included
    config.data.micro_batches = 1
    config.data.workers = 0  # processes that tokenise; 0: threads of this one

    config.loss = ConfigDict({"eta": 0.01})

    config.optimizer = ConfigDict({"learning_rate": 5e-5, "warmup_fraction": 0.05})
    config.optimizer.final_fraction = 0.1
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    # How long: steps, or (0) as many as the epochs take.
    config.train = ConfigDict({"steps": 0, "epochs": 1.0})
    config.train.log_every = 5
    config.train.eval_every = 0  # steps; 0: only at the end
    config.train.eval_rows = 64  # held-out prompts of an evaluation during training
    # Saves: every so many steps, every so many minutes (0: not so), and at the end; see
    # docs/train.md.
    config.train.checkpoint_every = 50
    config.train.checkpoint_minutes = 30.0
    config.train.keep_checkpoints = 2  # the newest
    config.train.keep_best = True  # and the one with the best evaluation during training
    config.train.checksums = True  # of checkpoints' files: notice any damage
    # A run in which nothing moves for so long ends (exit code 76); 0: never.
    config.train.hang_minutes = 10.0  # a step, a batch of an evaluation
    config.train.patient_minutes = 60.0  # with a compilation; loading, saving
    config.train.lost_seconds = 60  # a process of several, silent for so long, is lost
    # Where compiled programs are kept (a folder or gs://). "": where JAX is told to, else those of
    # several processes in workdir/compiled, of one in ~/.cache/toolrm_jax. "none": nowhere.
    config.train.compilation_cache = ""
    config.train.export = True  # write a Hugging Face directory to workdir/export at the end
    return config
