"""The variational autoencoder, and agents that learn from its latents."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import offlinerl
from offlinerl.agents import checkpoint
from offlinerl.agents.bc import BC
from offlinerl.agents.ddpg import DDPG
from offlinerl.agents.vae import VAE
from offlinerl.cli import main
from offlinerl.envs import make, pixels
from offlinerl.evaluation.plots import read_columns
from offlinerl.experience.table import Table
from offlinerl.learning import losses
from offlinerl.learning.rng import generator
from offlinerl.nn.decoders import ImageDecoder
from offlinerl.nn.encoders import LAYERS, Images
from offlinerl.training import config
from offlinerl.types import Batch, Leaf, Spec
from offlinerl.util.errors import UserError

SPEC = Spec((Leaf("", (12, 12, 3), "uint8"),), 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = dict(convolutions="minatar", latents=3)


class Blob(gym.Env):
    """Actions move a white square on a grey field; the reward is highest in the middle."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, **how):
        self.observation_space = gym.spaces.Box(0, 255, (24, 24, 3), np.uint8)
        self.render_mode = None
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def shown(self):
        frame = np.full((24, 24, 3), 90, np.uint8)
        row, column = np.round(10 + 8 * self.place).astype(int)
        frame[row : row + 4, column : column + 4] = 255
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.shown(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.2 * np.asarray(action, float), -1, 1)
        return self.shown(), 1 - float(np.abs(self.place).max()), False, False, {}


def batch_of(S=1, B=4, seed=0, spec=SPEC):
    images = torch.randint(
        0, 256, (S, B, *spec.obs[0].shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    row = torch.zeros(S, B)
    return Batch(images, torch.zeros(S, B, 2), row, row, images, row)


# The losses


def test_the_divergence_by_hand():
    # -1/2 [(1 + 0 - 1 - 1) + (1 + 1 - 0 - e)] = (e - 1) / 2, and nothing of the standard normal itself
    found = losses.divergence(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([(math.e - 1) / 2, 0])
    mean, log_var = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    normal = torch.distributions.Normal(mean, torch.exp(log_var / 2))
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(losses.divergence(mean, log_var), wanted)


def test_the_likelihoods_by_hand():
    # ((0.2 / 0.1)^2 + (0.1 / 0.1)^2) / 2 = 2.5, and log(0.1 sqrt(2 pi)) for each of the two
    found = losses.gaussian_likelihood(torch.tensor([[0.5, 0.2]]), torch.tensor([[0.3, 0.3]]), 0.1)
    assert found.tolist() == pytest.approx([2.5 + 2 * math.log(0.1 * math.sqrt(2 * math.pi))])
    # p = 1/2: log 2 whatever x is; p = 3/4 and x = 1/4: -(log(3/4) + 3 log(1/4)) / 4
    found = losses.bernoulli_likelihood(torch.tensor([[1.0], [0.25]]), torch.tensor([[0.0], [math.log(3)]]))
    assert found.tolist() == pytest.approx([math.log(2), -(math.log(3 / 4) + 3 * math.log(1 / 4)) / 4])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_loss_by_hand(likelihood):
    """Computed with plain modules, one frame at a time."""
    agent, batch = VAE(SPEC, (0,), likelihood=likelihood, beta=0.7, sigma=0.2, **SMALL), batch_of()
    noise, before = agent.draw(4), copy.deepcopy(agent)
    agent.configure_optimizers()
    metrics = agent.update(batch, noise, 0)
    (layer,), heads, decoder = before.posterior.images.layers, before.posterior.heads, before.decoder
    total = reconstruction = divergence = 0.0
    for b in range(4):
        x = batch.obs[0, b].permute(2, 0, 1)[None] / 255
        h = torch.relu(nn.functional.conv2d(x - 0.5, layer.weight[0], layer.bias[0])).flatten()
        mean, log_var = (h @ heads.weight[0] + heads.bias[0, 0]).chunk(2)
        z = mean + torch.exp(log_var / 2) * noise["epsilon"][0, b]
        h = torch.relu(z @ decoder.first.weight[0] + decoder.first.bias[0, 0]).view(1, 16, 10, 10)
        (last,) = decoder.layers
        p = torch.sigmoid(nn.functional.conv_transpose2d(h, last.weight[0], last.bias[0]))
        density = torch.distributions.Normal(p, 0.2) if likelihood == "gaussian" else None
        log_likelihood = density.log_prob(x) if density else x * p.log() + (1 - x) * (1 - p).log()
        kl = -(1 + log_var - mean**2 - log_var.exp()).sum() / 2
        reconstruction, divergence = reconstruction - log_likelihood.sum() / 4, divergence + kl / 4
    total = reconstruction + 0.7 * divergence
    for name, wanted in dict(vae_loss=total, reconstruction_loss=reconstruction, kl_loss=divergence).items():
        torch.testing.assert_close(metrics[name][0], wanted.detach(), rtol=1e-4, atol=1e-3)


def test_gradients_pass_through_sampled_latents():
    """Those of mean and variance equal finite differences of the loss with the same noise (paper, section 2.4)."""
    torch.set_default_dtype(torch.float64)
    try:
        agent, batch = VAE(SPEC, (0,), sigma=0.5, **SMALL), batch_of()
        noise, bias = agent.draw(4), agent.posterior.heads.bias

        def loss():
            found = []
            agent.descend = lambda name, value: found.append(value.mean()) or torch.zeros(1)
            agent.update(batch, noise, 0)
            return found[0]

        (gradient,) = torch.autograd.grad(loss(), bias)
        for i in range(6):  # three means and three variances
            values = []
            for step in (1e-7, -1e-7):  # too small to pass the kink of a ReLU
                with torch.no_grad():
                    bias[0, 0, i] += step
                    values.append(loss().item())
                    bias[0, 0, i] -= step
            assert gradient[0, 0, i].item() == pytest.approx((values[0] - values[1]) / 2e-7, rel=1e-3, abs=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "shape, layers",
    [((64, 64, 3), "world_models"), ((84, 84, 1), "nature"), ((37, 42, 3), "sac_ae"), ((6, 9, 3), "sac_ae")],
)
def test_decoded_images_have_the_size_of_the_encoded_ones(shape, layers):
    rng = [generator(seed, "test") for seed in (0, 1)]
    encoder = Images(shape, rng, LAYERS[layers])
    assert ImageDecoder(encoder, 5, rng)(torch.randn(2, 3, 5)).shape == (2, 3, *shape)


def test_seeds_are_independent():
    block = batch_of(S=2)
    both = VAE(SPEC, (3, 5), **SMALL)
    for _ in range(2):
        both.learn(Batch(*(x[None] for x in block[:6])))
    for s, seed in enumerate((3, 5)):
        alone = VAE(SPEC, (seed,), **SMALL)
        for _ in range(2):
            alone.learn(Batch(*(x[None, s : s + 1] for x in block[:6])))
        for mine, theirs in zip(alone.parameters(), both.parameters(), strict=True):
            torch.testing.assert_close(mine[0], theirs[s], rtol=1e-3, atol=1e-5)


def test_it_learns_to_reconstruct_images():
    """Half black and half white frames, from one latent, within a few updates."""
    agent = VAE(SPEC, (0,), convolutions="minatar", latents=1, lr=1e-2)
    images = torch.zeros(1, 1, 16, 12, 12, 3, dtype=torch.uint8)
    images[:, :, 8:] = 255
    row = torch.zeros(1, 1, 16)
    found = [agent.learn(Batch(images, torch.zeros(1, 1, 16, 2), row, row, images, row))[0] for _ in range(30)]
    assert found[-1]["vae_loss"] < 0.5 * found[0]["vae_loss"]
    dark, light = agent.reconstructed(images[0])[0, [0, 8]].mean((1, 2, 3))
    assert dark < 0.3 and light > 0.7


# Agents that use it as their encoder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Collected frames and a VAE of them."""
    folder = tmp_path_factory.mktemp("vae")
    gym.register("test/Blob-v0", f"{__name__}:Blob", max_episode_steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        random = ["collect", "random", "--env", "test/Blob-v0", "--frame-size", "12", "--action-repeat", "2"]
        assert main([*random, "--stack", "1", "--episodes", "20", "--dataset", "blob/random-v0"]) == 0
        fit = ["fit", "vae", "--dataset", "blob/random-v0", "--agent.convolutions", "minatar", "--agent.latents", "3"]
        length = ["--updates", "60", "--batch", "16", "--eval-every", "30", "--seeds", "4,5", "--compile", "false"]
        length += ["--train.table", "disk"]
        assert main([*fit, *length, "--out", "vae"]) == 0
        yield folder


@pytest.fixture
def here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(workplace / "minari"))
    return workplace


FEW = ["--compile", "false", "--final-episodes", "1", "--batch", "8", "--agent.hidden", "[8]"]
ONLINE = ["--env", "test/Blob-v0", "--frame-size", "12", "--action-repeat", "2", "--steps", "40", "--eval-every", "40"]
ONLINE = [*ONLINE, "--train.warm_up", "20", *FEW]


def test_its_run_has_held_out_losses_and_a_picture(here):
    held_out = read_columns(here / "vae/held_out.csv")
    for seed in (4, 5):
        first, last = held_out["vae_loss"][held_out["seed"] == seed]
        assert last < first
    picture = np.asarray(Image.open(here / "vae/reconstructions.png"))
    assert picture.shape[1] > 2 * picture.shape[0] and picture.std() > 10
    assert config.read(here / "vae/config.yaml")["train"]["held_out"] is None
    assert not (here / "vae/evaluations.csv").exists() and (here / "vae/last.ckpt").exists()


def test_it_has_no_policy(here, refused):
    said = "a vae has no policy: name its run as an agent's encoder, as in --agent.encoder runs/vae"
    assert said in refused("evaluate", "vae", "--env", "test/Blob-v0", "--frame-size", 12, "--stack", 1)
    assert "vae learns from images of a dataset: give --dataset" in refused("fit", "vae", "--env", "test/Blob-v0")


def test_an_agent_learns_only_from_its_latents(here):
    """DDPG learns by acting, with two frames per observation; the VAE's files may be deleted afterwards."""
    assert main(["fit", "ddpg", *ONLINE, "--stack", "2", "--agent.encoder", "vae", "--out", "seeing"]) == 0
    agent, vae = (checkpoint.load_agent(here / name) for name in ("seeing", "vae"))
    assert agent.actor.encoder.features == 6 and not [name for name, _ in agent.named_parameters() if "frozen" in name]
    frames = torch.randint(0, 256, (1, 5, 12, 12, 6), dtype=torch.uint8)
    means = [vae.posterior(frames[..., c : c + 3].expand(2, -1, -1, -1, -1))[0][0] for c in (0, 3)]
    wanted = torch.cat(means, -1)[None]  # of the first seed, the older frame first
    torch.testing.assert_close(agent.frozen(frames), wanted)
    torch.testing.assert_close(agent.act(frames), agent.act(wanted))
    replay = torch.load(next((here / "seeing").glob("replay-*.pt")), weights_only=True)
    assert replay["lanes"][0].shape[2:] == (3,) and replay["lanes"][0].dtype == torch.float32
    (here / "vae").rename(here / "elsewhere")
    try:
        assert main(["fit", "--resume", "seeing", "--steps", "60"]) == 0
        action = offlinerl.load_policy("seeing")(frames[0, 0].numpy())
    finally:
        (here / "elsewhere").rename(here / "vae")
    assert action.shape == (2,) and np.isfinite(action).all()
    assert main(["export", "seeing", "--safetensors", "seeing.safetensors"]) == 0
    np.testing.assert_allclose(
        offlinerl.load_policy("seeing.safetensors")(frames[0].numpy()),
        offlinerl.load_policy("seeing")(frames[0].numpy()),
    )


@pytest.mark.parametrize("agent", ["bc", "td3bc", "ppo"])
def test_agents_of_every_kind_learn_from_its_latents(here, agent):
    where = ["--dataset", "blob/random-v0", "--updates", "4"]
    where += ["--train.table", "disk", "--train.held_out", "0.2"] if agent == "bc" else []
    if agent == "ppo":
        where = ["--env", "test/Blob-v0", "--frame-size", "12", "--steps", "40", "--agent.normalize_obs", "true"]
    assert main(["fit", agent, *where, *FEW, "--agent.encoder", "vae", "--out", f"with-{agent}"]) == 0
    trained, vae = (checkpoint.load_agent(here / name) for name in (f"with-{agent}", "vae"))
    for name, weight in trained.frozen.posterior.state_dict().items():
        assert torch.equal(weight, vae.posterior.state_dict()[name][:1]), "it stays as it is"


@pytest.mark.parametrize("by", ["fqe", "dr"])
def test_agents_with_an_encoder_are_ranked_on_their_dataset(here, by):
    fit = ["fit", "bc", "--dataset", "blob/random-v0", "--updates", "4", *FEW, "--agent.encoder", "vae"]
    assert main([*fit, "--out", f"ranked-{by}"]) == 0
    found = offlinerl.select(f"ranked-{by}", by=by, updates=2, critics=2)
    assert np.isfinite(found["policies"][0]["estimate"])


def test_learning_from_frames_equals_learning_from_a_table_of_latents(here):
    """They agree up to rounding."""
    fit = ["fit", "bc", "--dataset", "blob/random-v0", "--updates", "1", *FEW, "--agent.encoder", "vae"]
    assert main([*fit, "--out", "rows"]) == 0
    agent = checkpoint.load_agent(here / "rows")
    data = offlinerl.load_dataset("blob/random-v0")
    latents = Table.of(agent, data).transitions(torch.arange(30))
    frames = Table(data, agent.spec, agent.gamma).transitions(torch.arange(30))
    assert latents.obs.shape == (30, 3) and frames.obs.shape == (30, 12, 12, 3)
    torch.testing.assert_close(agent.frozen(frames.obs), latents.obs)
    torch.testing.assert_close(agent.frozen(frames.next_obs), latents.next_obs)


# What does not fit


def test_observations_that_do_not_fit_the_encoder_are_refused(here, refused):
    """Frames of another size, vectors, an encoder of another task, and shifted images."""
    size = [word if word != "12" else "16" for word in ONLINE]
    said = refused("fit", "ddpg", *size, "--agent.encoder", "vae")
    assert "was trained on images of 12x12x3, but test/Blob-v0 has observations of images 16x16x9" in said
    assert "--frame-size 12" in said
    vectors = ["--env", "Pendulum-v1", "--steps", 40, *FEW]
    said = refused("fit", "ddpg", *vectors, "--agent.encoder", "vae")
    assert "was trained on images of 12x12x3, but Pendulum-v1 has 3 observations" in said
    assert "there is no checkpoint nowhere" in refused("fit", "ddpg", *ONLINE, "--agent.encoder", "nowhere")
    said = refused("fit", "ddpg", *ONLINE, "--agent.encoder", "vae", "--agent.shift", 2)
    assert "shift moves images, but the agent learns from an encoder's latents: give --agent.shift 0" in said
    with pytest.raises(UserError, match="encoder only works in a run"):
        BC(SPEC, encoder="vae")


def test_the_run_of_another_agent_is_refused_as_an_encoder(here, refused):
    assert main(["fit", "bc", "--dataset", "blob/random-v0", "--updates", "1", *FEW, "--out", "plain"]) == 0
    said = refused("fit", "ddpg", *ONLINE, "--agent.encoder", "plain")
    assert "must be a vae's, not BC's: train one with fit vae" in said


def test_frames_that_no_encoder_accepts_are_refused(here, refused, monkeypatch):
    """A dataset of frames for an agent that sees vectors, vectors for a VAE, and frames smaller than a kernel."""
    said = refused("fit", "bc", "--dataset", "blob/random-v0", "--env", "Pendulum-v1", "--updates", 1)
    assert "the dataset's observations have shape (12, 12, 3) and the environment's (3,)" in said
    (here / "sees.py").write_text(
        "from offlinerl.agents.bc import BC\nfrom offlinerl.nn.encoders import Identity\n"
        "class OfVectors(BC):\n    def encoder(self, network):\n        return Identity(self.spec.obs_dim)\n"
    )
    monkeypatch.syspath_prepend(here)
    said = refused("fit", "sees:OfVectors", "--dataset", "blob/random-v0", "--updates", 1)
    assert "observations must be one vector here, not an image [12, 12, 3]; use an agent that sees images" in said
    said = refused("fit", "vae", "--dataset", "kitchen", "--updates", 1)
    assert "a vae learns from images only" in said
    with pytest.raises(UserError, match="images of 2x12 are too small for convolutions, the smallest of which is 4x4"):
        VAE(Spec((Leaf("", (2, 12, 3), "uint8"),), 2, (-1.0,) * 2, (1.0,) * 2))


def test_an_image_with_other_parts_beside_it_is_refused_with_the_part_to_choose(here):
    rng = np.random.default_rng(0)
    images, joints = rng.integers(0, 256, (30, 12, 12, 3), np.uint8), rng.normal(size=(30, 2))
    arrays = dict(obs=dict(joints=joints, camera=images), action=rng.uniform(-1, 1, (30, 2)))
    few, says = dict(updates=2, batch=4, compile=False), "parts joints, camera: choose an image with --obs-keys camera"
    with pytest.raises(UserError, match=f"a vae learns from one image alone, but these observations have the {says}"):
        offlinerl.fit("vae", arrays, **few)
    run = offlinerl.fit("vae", arrays, obs_keys=["camera"], convolutions="minatar", **few)
    with pytest.raises(UserError, match=f"an agent with the encoder .* learns from one image alone, but .* the {says}"):
        offlinerl.fit("bc", arrays, encoder=str(run.folder), **few)
    offlinerl.fit("bc", arrays, encoder=str(run.folder), obs_keys=["camera"], **few)


def test_its_settings_are_restored(tmp_path):
    agent = VAE(SPEC, (4,), likelihood="bernoulli", beta=2.0, lr=1e-4, **SMALL)
    optimizers = [optimizer.state_dict() for optimizer in agent.configure_optimizers()]
    content = dict(state_dict=agent.state_dict(), optimizer_states=optimizers, hyper_parameters=dict(agent.hparams))
    agent.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    loaded = checkpoint.load_agent(tmp_path / "a.ckpt")
    assert loaded.config == agent.config and loaded.spec == agent.spec
    x = batch_of().obs
    assert torch.equal(loaded.reconstructed(x), agent.reconstructed(x))


def test_using_weights_that_were_never_loaded_is_an_error():
    agent = DDPG(Spec(SPEC.obs, 2, (-1.0,) * 2, (1.0,) * 2, latent=("minatar", 3, 3)), encoder="vae", hidden=(4,))
    assert agent.act(batch_of().obs).isnan().all()


# Environments that show images themselves


def test_frames_are_resized_and_actions_held():
    env, raw = pixels.Resized(Blob(), 12, 2), Blob()
    shown, plain = env.reset(seed=1)[0], raw.reset(seed=1)[0]
    action = np.array([0.3, -0.7], np.float32)
    for _ in range(3):
        np.testing.assert_allclose(shown, plain.reshape(12, 2, 12, 2, 3).mean((1, 3)), atol=1)
        shown, reward, *_ = env.step(action)
        plain, wanted = None, 0.0
        for _ in range(2):
            plain, paid, *_ = raw.step(action)
            wanted += paid
        assert reward == pytest.approx(wanted)


def test_carracing_renders_only_observed_frames():
    pytest.importorskip("Box2D", reason="Box2D is not installed: pip install 'offlinerl[box2d]'")
    env = make.make(
        make.with_limits({"id": "CarRacing-v3", "max_episode_steps": 10}, dict(pixels=dict(size=64, repeat=4)))
    )
    raw = gym.make("CarRacing-v3", max_episode_steps=10)
    drawn, draw = [], type(raw.unwrapped)._render
    assert env.observation_space.shape == (64, 64, 9)
    frame, wanted = env.reset(seed=1)[0][..., -3:], raw.reset(seed=1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(raw.unwrapped), "_render", lambda self, mode: drawn.append(self) or draw(self, mode))
        for held in (4, 4, 2):  # the last action until the time is up
            reduced = Image.fromarray(wanted).resize((64, 64), Image.Resampling.BOX)
            np.testing.assert_array_equal(frame, np.asarray(reduced))
            action = np.array([0.1, 0.6, 0.0], np.float32)
            shown, reward, _, truncated, _ = env.step(action)
            frame, paid = shown[..., -3:], 0.0
            for _ in range(held):
                wanted, value, _, over, _ = raw.step(action)
                paid += value
            assert reward == pytest.approx(paid) and truncated == over == (held == 2)
    np.testing.assert_array_equal(frame, np.asarray(Image.fromarray(wanted).resize((64, 64), Image.Resampling.BOX)))
    assert sum(self is env.unwrapped for self in drawn) == 3 and sum(self is raw.unwrapped for self in drawn) == 10
