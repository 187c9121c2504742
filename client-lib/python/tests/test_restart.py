"""A model decodes while its daemon is killed and another one takes over the pool: it says what it would have said."""

import threading
import time

import numpy as np
import pytest
import torch

import magicpig
from magicpig.transformers import MagicPigCache, register
from test_transformers import make_gemma2, make_llama

PROMPT, STEPS = 300, 24
OPTIONS = {
    "dense": dict(proposal="dense", row_dtype="f16", window=16, sinks=4),
    "signature": dict(proposal="signature", budget=0.2, seed=5, row_dtype="f16", window=16, sinks=4),
}


@pytest.fixture(scope="module")
def daemon(start_daemon):
    with start_daemon("pytest-restart", pool_size="256M") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def llama():
    return make_llama()


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(0, 199, (1, PROMPT), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def decode(model, cache, prompt, at_step=lambda step: None, chunks=(PROMPT,)):
    """Tokens and logits of greedy decoding; at_step(step) is called before each step, and with -1 before the last piece of the prompt."""
    at, said, logits = 0, [], []
    for number, n in enumerate(chunks):
        at_step(number - len(chunks))
        last = model(prompt[:, at : at + n], past_key_values=cache, use_cache=True).logits[0, -1]
        at += n
    for step in range(STEPS):
        token = last.argmax()
        at_step(step)
        last = model(token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1]
        said.append(int(token))
        logits.append(last)
    return said, torch.stack(logits)


@pytest.fixture(scope="module")
def undisturbed(daemon, llama, prompt):
    def run(options, _done={}):
        if options not in _done:
            with magicpig.Client(str(daemon.socket)) as client:
                with MagicPigCache(client, llama, "calm", context_seed=1, **OPTIONS[options]) as cache:
                    _done[options] = decode(llama, cache, prompt)
                client.drop("calm")
        return _done[options]

    return run


class Killer:
    """Kills the daemon at one place of one step, and starts another."""

    def __init__(self, daemon, cache, model, place, step):
        self.daemon, self.cache, self.place, self.step, self.kills = daemon, cache, place, step, 0
        channel, self.now = cache.channel, None
        commit, answer, append = channel.commit, channel.answer, channel.submit_append

        def killing_commit(*arguments, **options):
            if self.due("before the commit"):
                self.kill()
            commit(*arguments, **options)
            if self.due("after the commit"):  # the answer is lost
                self.kill()
                raise magicpig.Retry("killed by the test")

        def killing_answer(pending):
            if self.due("with requests in flight", 1):
                self.kill()
            return answer(pending)

        def freezing_append(index, *arguments):
            append(index, *arguments)
            if self.due("in a layer") and index == 1:
                self.kill()

        channel.commit, channel.answer, channel.submit_append = killing_commit, killing_answer, freezing_append

    def due(self, place, kills=0):
        return self.place == place and self.now == self.step and self.kills == kills

    def at_step(self, step):
        self.now = step
        if self.due("between steps"):
            self.kill()
        elif self.due("with requests in flight"):
            self.daemon.freeze()  # it takes none of the step's
            self.kills += 1

    def kill(self):
        self.kills += 1
        self.daemon.kill_and_restart()


PLACES = ["between steps", "in a layer", "with requests in flight", "before the commit", "after the commit"]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_killed_in_a_step(daemon, client, llama, prompt, undisturbed, place, options):
    said, logits = undisturbed(options)
    with MagicPigCache(client, llama, "killed", context_seed=1, **OPTIONS[options]) as cache:
        killer = Killer(daemon, cache, llama, place, 7)
        again, logits_again = decode(llama, cache, prompt, killer.at_step)
        assert killer.kills
        assert again == said
        assert torch.equal(logits_again, logits)  # to the last bit
        assert cache.length == PROMPT + STEPS == cache.context.committed


@pytest.mark.parametrize("chunks", [(100, 120, 80), (PROMPT,)], ids=["between pieces", "before the seal"])
def test_killed_in_a_prompt(daemon, client, llama, prompt, undisturbed, chunks):
    said, _ = undisturbed("dense")
    with MagicPigCache(client, llama, "prompt", context_seed=1, **OPTIONS["dense"]) as cache:
        killed = []

        def at_step(step):
            if (step == -1 and len(chunks) > 1 and not killed) or (step == 0 and len(chunks) == 1):
                killed.append(daemon.kill_and_restart())

        again, _ = decode(llama, cache, prompt, at_step, chunks=chunks)
        assert killed and again == said


class Beside(threading.Thread):
    """Runs a function; the daemon dies with the thread that started it, so that this thread is the one that restarts it."""

    def __init__(self, call):
        super().__init__()
        self.call, self.result, self.error = call, None, None
        self.start()

    def run(self):
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def finish(self):
        self.join()
        if self.error is not None:
            raise self.error
        return self.result


def test_killed_again_and_again(daemon, client, llama, prompt, undisturbed):
    """At moments nobody chose, but not so often that no machine could get on: a call is made eight times, a kill may cost it two of them, and a busy
    machine may need more for one than the time between two kills."""
    said, logits = undisturbed("dense")
    random, kills, of_step, now, moved = np.random.default_rng(1), 0, [0] * STEPS, -1, threading.Condition()

    def at_step(step):
        nonlocal now
        with moved:
            now = step
            moved.notify_all()
            assert moved.wait_for(lambda: kills >= step * 4 // STEPS, 600)  # it does not get away unharmed

    with MagicPigCache(client, llama, "often", context_seed=1, **OPTIONS["dense"]) as cache:
        decoding = Beside(lambda: decode(llama, cache, prompt, at_step))
        while decoding.is_alive() and kills < 40:
            with moved:
                if not moved.wait_for(lambda: now >= 0 and of_step[now] < 2, 0.1):
                    continue
            time.sleep(random.uniform(0.002, 0.03))
            with moved:
                of_step[now] += 1
            daemon.kill_and_restart()
            with moved:
                kills += 1
                moved.notify_all()
        again, logits_again = decoding.finish()
        assert kills >= 3
        assert again == said and torch.equal(logits_again, logits)


def test_generate_and_idle_clients(daemon, client, llama, prompt):
    """generate() goes on by itself; a client that did nothing meanwhile goes on with its next call, on the same handle."""
    keep = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(prompt))
    with MagicPigCache(client, llama, "calm", **OPTIONS["dense"]) as cache:
        expected = llama.generate(prompt, past_key_values=cache, **keep)
    with magicpig.Client(str(daemon.socket)) as idle, idle.queue() as queue, idle.open("calm") as context:
        q = np.random.default_rng(2).standard_normal((4, 64), dtype=np.float32)
        before = queue.attend(context, 1, q, proposal="dense")
        with MagicPigCache(client, llama, "killed", **OPTIONS["dense"]) as cache:
            generating = Beside(lambda: llama.generate(prompt, past_key_values=cache, **keep))
            time.sleep(0.1)
            daemon.kill_and_restart()
            assert torch.equal(generating.finish(), expected)
        after = None
        while after is None:  # the first call may have been told to try again
            try:
                after = queue.attend(context, 1, q, proposal="dense")
            except magicpig.Retry:
                continue
        assert np.array_equal(before.out, after.out) and np.array_equal(before.lse, after.lse)


def test_sliding_layers(daemon, client, prompt):
    """Rows of sliding layers are appended again too, as far as their window holds them."""
    model = make_gemma2()
    register(model)
    runs = []
    for name in ("calm", "killed"):
        with MagicPigCache(client, model, name, context_seed=1, **OPTIONS["dense"]) as cache:
            killer = Killer(daemon, cache, model, "in a layer" if name == "killed" else "nowhere", 5)
            runs.append(decode(model, cache, prompt, killer.at_step))
            assert killer.kills == (name == "killed")
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    with MagicPigCache(client, model, "prompt", **OPTIONS["dense"]) as cache:
        with pytest.raises(RuntimeError, match="run the prompt again"):
            decode(model, cache, prompt, lambda step: step == 0 and daemon.kill_and_restart())


def test_no_successor(start_daemon, llama, prompt):
    """When no daemon comes back, that is said; nothing hangs."""
    with start_daemon("pytest-gone", pool_size="256M") as own:
        with magicpig.Client(str(own.socket), reconnect_ms=200) as client:
            cache = MagicPigCache(client, llama, "gone", **OPTIONS["dense"])
            begin = time.monotonic()
            with pytest.raises((magicpig.NoDaemon, magicpig.Retry)):
                decode(llama, cache, prompt, lambda step: step == 3 and (own.process.kill(), own.process.wait()))
            assert time.monotonic() - begin < 60
