from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from engine.contract.bands import ndsm_spec, normalise, rgir_spec
from engine.contract.sensors import Scenario
from train.blocks import Attention, LearnedPosition, Normalise, TokenMixer, pack, unpack
from train.config import PRESETS, ModelConfig
from train.model import GEMMNet, count_macs, relief, smoothing, standardised
from train.system import availability
from train.systems import build

ALL_SCENARIOS = torch.tensor([availability(scenario) for scenario in Scenario])
SMALL = {
    "nano": PRESETS["nano"].model,
    "edge": PRESETS["edge"].model,
    **{
        name: replace(preset.model, token_width=32, token_heads=4, token_mlp=32, generator_widths=(8, 8, 16, 16))
        for name, preset in PRESETS.items()
        if name not in ("nano", "edge")
    },
}


def scene(n: int = 3, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8), torch.rand(n, 1, side, side) * 20 - 1


@pytest.fixture(scope="module", params=["nano", "edge", "paper", "ae", "mmformer", "shaspec"])
def model(request):
    torch.manual_seed(0)
    net = build(SMALL[request.param])
    rgir, ndsm = scene()
    for _ in range(3):  # batch statistics of their own, so that eval mode is not the identity
        net.train()(rgir, ndsm, ALL_SCENARIOS)
    return net.eval()


@pytest.mark.parametrize("spec", [rgir_spec(), ndsm_spec("asinh"), ndsm_spec("linear")])
def test_normalise_agrees_with_the_contract(spec):
    raw = np.random.default_rng(0).uniform(-10, 300, (2, len(spec.bands), 8, 8)).astype(np.float32)
    found = Normalise(spec.bands)(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(found, normalise(raw, spec.bands), atol=5e-6)


def test_packed_bands_hold_each_pixel_once_and_normalise_as_the_image_does():
    bands = rgir_spec().bands
    uneven = [replace(band, offset=10.0 * i, scale=1.0 + i) for i, band in enumerate(bands)]
    rgir = scene(2, 8)[0].float()
    packed = pack(rgir, 4)
    assert packed.shape == (2, 48, 2, 2)
    assert sorted(packed[0, :, 1, 0].tolist()) == sorted(rgir[0, :, 4:8, 0:4].flatten().tolist())
    torch.testing.assert_close(unpack(packed, 4), rgir)
    torch.testing.assert_close(unpack(Normalise(uneven)(packed), 4), Normalise(uneven)(rgir))


def test_preset_edge_keeps_to_what_int8_and_small_devices_like():
    config = PRESETS["edge"].model
    model = build(config)
    widths = {c.out_channels for c in model.modules() if isinstance(c, nn.Conv2d) and c is not model.smooth} - {
        head.out_channels for head in model.modules() if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1)
    }
    assert {width % 32 for width in (*widths, *config.encoder_widths, *config.generator_widths)} == {0}
    assert not any(isinstance(m, nn.ConvTranspose2d | nn.InstanceNorm2d) for m in model.modules())
    # nothing but the logits is convolved at full resolution
    sides = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer is not model.smooth:
            layer.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    model.eval().forward_full(*scene(1, 64))
    assert max(sides) == 64 // config.stem_stride


def test_the_smoothing_starts_as_a_mean_of_each_class_alone_and_reaches_across_blocks():
    smooth = smoothing(2, 5)
    logits = torch.zeros(1, 2, 16, 16)
    logits[0, 0, 4:8, 4:8] = 25.0  # one block of four
    smoothed = smooth(logits)
    torch.testing.assert_close(smoothed[0, 0, 6, 6], torch.tensor(16.0))
    torch.testing.assert_close(smoothed[0, 0, 5, 8:11], torch.tensor([8.0, 4.0, 0.0]))
    assert not smoothed[0, 1].any()
    assert smoothing(2, 1)(logits) is logits


def test_relief_is_the_range_of_each_block_of_pixels():
    image = torch.rand(2, 3, 8, 12)
    blocks = image.unfold(2, 4, 4).unfold(3, 4, 4)
    torch.testing.assert_close(relief(pack(image, 4), 3), blocks.amax((-1, -2)) - blocks.amin((-1, -2)))


def test_what_is_standardised_does_not_know_gain_and_haze_but_is_told_them():
    image = torch.rand(2, 3, 8, 12)
    found, level, contrast = standardised(pack(image, 4), 3)
    torch.testing.assert_close(level[..., 1, 2], image.mean((-1, -2)))
    torch.testing.assert_close(contrast[..., 1, 2], image.std((-1, -2), correction=0), atol=2e-3, rtol=0)
    hazy = image * torch.tensor([1.3, 0.9, 0.7]).view(3, 1, 1) + 0.2
    torch.testing.assert_close(standardised(pack(hazy, 4), 3)[0], found, atol=3e-3, rtol=0)
    blank = standardised(torch.full((1, 48, 2, 2), 0.7), 3)[0]
    assert blank.abs().max() < 1e-4


def test_export_paths_equal_the_masked_forward(model):
    rgir, ndsm = scene()
    with torch.no_grad():
        masked = model(rgir, ndsm, ALL_SCENARIOS)
        full = model.forward_full(rgir, ndsm)
        no_ndsm, made_ndsm = model.forward_missing_ndsm(rgir)
        no_rgir, made_rgir = model.forward_missing_rgir(ndsm)
    expected = torch.stack([full[0], no_ndsm[1], no_rgir[2]])
    torch.testing.assert_close(masked.logits, expected, atol=1e-4, rtol=1e-4)
    if masked.synthesised is None:
        assert (made_ndsm, made_rgir) == (None, None)
    else:
        torch.testing.assert_close(masked.synthesised[1][:2], made_ndsm[:2], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(masked.synthesised[0][[0, 2]], made_rgir[[0, 2]], atol=1e-5, rtol=1e-4)
    assert masked.logits.shape == (3, 6, 64, 64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("preset", ["nano", "mmformer", "shaspec"])
def test_an_absent_sensor_reaches_neither_outputs_nor_batch_statistics(preset, training):
    rgir, ndsm = scene()
    garbage_rgir, garbage_ndsm = rgir.float(), ndsm.clone()
    garbage_ndsm[1] = float("nan")  # absent in missing_ndsm
    garbage_rgir[2] = float("nan")  # absent in missing_rgir
    results = []
    for inputs in ((rgir.float(), ndsm), (garbage_rgir, garbage_ndsm)):
        torch.manual_seed(0)
        net = build(replace(SMALL[preset], norm="batch", dropout=0.0)).train(training)
        output = net(*inputs, ALL_SCENARIOS)
        results.append((output, net.state_dict()))
    (clean, clean_state), (dirty, dirty_state) = results
    for name in ("logits", "scale_logits", "unimodal_logits", "synthesised", "shared_features", "modality_logits"):
        torch.testing.assert_close(getattr(dirty, name), getattr(clean, name), atol=0, rtol=0)
    torch.testing.assert_close(dirty_state, clean_state, atol=0, rtol=0)


def test_an_absent_sensor_gets_no_gradient_and_a_present_one_does(model):
    rgir, ndsm = scene()
    inputs = rgir.float().requires_grad_(), ndsm.requires_grad_()
    model(*inputs, ALL_SCENARIOS).logits.square().sum().backward()
    reached = torch.stack([x.grad.abs().amax(dim=(1, 2, 3)) > 0 for x in inputs], dim=1)
    assert reached.tolist() == ALL_SCENARIOS.tolist()


def test_a_sample_does_not_depend_on_its_neighbours_scenario(model):
    rgir, ndsm = scene()
    with torch.no_grad():
        together = model(rgir, ndsm, ALL_SCENARIOS).logits
        alone = [model(rgir[i : i + 1], ndsm[i : i + 1], ALL_SCENARIOS[i : i + 1]).logits for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [32, 96, 160])
def test_a_model_runs_on_sizes_it_was_not_trained_on(model, side):
    rgir, ndsm = scene(1, side)
    with torch.no_grad():
        assert model.forward_full(rgir, ndsm).shape == (1, 6, side, side)
        logits, made = model.forward_missing_rgir(ndsm)
    assert logits.shape == (1, 6, side, side)
    assert made is None or made.shape == (1, 3, side, side)


def test_a_learned_position_keeps_its_values_on_its_grid_and_its_corners_beyond():
    position = LearnedPosition(4, grid=8)
    nn.init.normal_(position.embedding)
    zeros = torch.zeros(1, 4, 8, 8)
    torch.testing.assert_close(position(zeros), position.embedding)
    larger = position(torch.zeros(1, 4, 16, 16))
    torch.testing.assert_close(larger[..., 0, 0], position.embedding[..., 0, 0])
    torch.testing.assert_close(larger[..., -1, -1], position.embedding[..., -1, -1])


def test_tokens_return_to_their_own_place_and_modality():
    mixer = TokenMixer(replace(SMALL["nano"], token_width=8, token_heads=2), 8, maps=2)
    for convolution in (*mixer.enter, *mixer.leave):
        convolution.weight.data = torch.eye(8).view(8, 8, 1, 1)
        convolution.bias.data.zero_()
    mixer.position = nn.ModuleList([nn.Identity(), nn.Identity()])
    mixer.layers, mixer.norm = nn.Sequential(), nn.Identity()
    maps = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5)
    for found, given in zip(mixer(maps), maps, strict=True):
        torch.testing.assert_close(found, 2 * given)


def test_attention_agrees_with_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([layer.weight.data for layer in projections])
    theirs.in_proj_bias.data = torch.cat([layer.bias.data for layer in projections])
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], atol=1e-5, rtol=1e-4)


def test_auxiliary_logits_exist_in_training_only_at_their_own_resolution():
    net = GEMMNet(SMALL["nano"]).train()
    output = net(*scene(), ALL_SCENARIOS)
    assert [logits.shape[-1] for logits in output.scale_logits] == [32, 16, 8, 4]
    assert len(output.unimodal_logits) == 2
    assert net.eval()(*scene(), ALL_SCENARIOS).scale_logits == ()


def test_a_sample_without_any_sensor_is_refused(model):
    with pytest.raises(ValueError, match="at least one available sensor"):
        model(*scene(1), torch.tensor([[False, False]]))


def test_a_side_that_does_not_fit_the_stride_is_refused():
    with pytest.raises(ValueError, match="multiples of 32 px, received \\(48, 48\\)"):
        GEMMNet(SMALL["nano"]).forward_full(*scene(1, 48))


def test_count_macs_counts_convolutions_linear_layers_and_attention():
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3, 2, 1), "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8)})
    assert count_macs(net, lambda: net["depthwise"](net["conv"](torch.zeros(1, 3, 16, 16)))) == 64 * 8 * 9 * (3 + 1)
    up = nn.ConvTranspose2d(4, 2, 4, 2, 1)
    assert count_macs(up, lambda: up(torch.zeros(1, 4, 8, 8))) == 4 * 64 * 2 * 16
    attention = Attention(16, 4)
    assert count_macs(attention, lambda: attention(torch.zeros(2, 5, 16))) == 2 * (4 * 5 * 256 + 2 * 25 * 16)


@pytest.mark.parametrize(
    ("preset", "parameters", "full_gmac", "missing_gmac"),
    [
        # The authors' code: 8.55 M deployable, about 12.8 and 18.4 GMAC.
        ("paper", (8.0e6, 9.4e6), (12.1, 13.5), (17.5, 19.3)),
        ("nano", (1.8e6, 2.5e6), (1.2, 1.8), (1.6, 2.5)),
    ],
)
def test_presets_stay_within_their_budget_at_512_px(preset, parameters, full_gmac, missing_gmac):
    with torch.device("meta"):
        net = GEMMNet(PRESETS[preset].model).eval()
        rgir, ndsm = torch.empty(1, 3, 512, 512), torch.empty(1, 1, 512, 512)
    assert parameters[0] < net.deployable_parameters() < parameters[1]
    assert full_gmac[0] < count_macs(net, lambda: net.forward_full(rgir, ndsm)) / 1e9 < full_gmac[1]
    for call in (lambda: net.forward_missing_ndsm(rgir), lambda: net.forward_missing_rgir(ndsm)):
        assert missing_gmac[0] < count_macs(net, call) / 1e9 < missing_gmac[1]


@pytest.mark.parametrize("switch", ["hyfex_attention", "hyfma_attention"])
def test_an_ablation_removes_its_transformer_and_nothing_else(switch):
    def layers(config: ModelConfig) -> list[str]:
        return [name for name, module in build(config).named_modules() if isinstance(module, TokenMixer)]

    whole, ablated = layers(SMALL["nano"]), layers(replace(SMALL["nano"], **{switch: False}))
    fusion = [name for name in whole if name.startswith("fusion")]
    assert len(whole) == 5  # two encoders, two generators, one fusion
    assert set(whole) - set(ablated) == (set(fusion) if switch == "hyfma_attention" else set(whole) - set(fusion))


def test_auxiliary_modules_are_in_no_exported_path():
    for preset in ("nano", "paper", "mmformer", "shaspec"):
        net = build(SMALL[preset]).eval()
        for module in net.auxiliary():
            for parameter in module.parameters():
                parameter.data.fill_(float("nan"))
        rgir, ndsm = scene(1)
        with torch.no_grad():
            answers = net.forward_full(rgir, ndsm), net.forward_missing_ndsm(rgir)[0], net.forward_missing_rgir(ndsm)[0]
        assert all(torch.isfinite(logits).all() for logits in answers), preset


def test_nano_holds_only_layers_that_deploy_well():
    net = GEMMNet(PRESETS["nano"].model)
    kinds = {type(module) for module in net.modules()}
    assert not kinds & {nn.InstanceNorm2d, nn.ConvTranspose2d, nn.LeakyReLU, nn.Tanh}
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert {m.padding_mode for m in convolutions} == {"zeros"}
    hidden = {m.out_channels for m in convolutions if m.out_channels not in (1, 3, 6)}  # bands and classes aside
    assert min(hidden) >= 16
    assert all(width % 8 == 0 for width in hidden)


def test_jitter_of_the_statistics_is_told_and_leaves_a_network_in_use_alone():
    torch.manual_seed(0)
    packed = torch.rand(64, 48, 4, 4)
    plain, level, contrast = standardised(packed, 3)
    found, moved, stretched = standardised(packed, 3, jitter=0.1)
    # what is told undoes what is done, whatever was drawn
    for off, mean, spread in ((plain, level, contrast), (found, moved, stretched)):
        shown = off.unflatten(1, (3, 16)) * spread[:, :, None] + mean[:, :, None]
        torch.testing.assert_close(shown.flatten(1, 2), packed)
    assert float(((moved - level) / stretched).std()) == pytest.approx(0.1, abs=0.02)
    assert float((stretched / contrast).log().std()) == pytest.approx(0.1, abs=0.02)

    model = GEMMNet(replace(PRESETS["edge"].model, standardise_jitter=0.5)).eval()
    image = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(
        model.forward_missing_ndsm(image)[0], model.forward_missing_ndsm(image)[0], rtol=0, atol=0
    )


def test_only_gemmnet_standardises():
    with pytest.raises(ValueError, match="system gemmnet, received shaspec"):
        ModelConfig(system="shaspec", standardise=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder_widths", (8, 16), "five scales"),
        ("pixel_shuffle", True, "generator_decoder"),
        ("relief", True, "pixel_shuffle"),
        ("token_heads", 7, "multiple of token_heads"),
        ("generator_widths", (8, 8), "same length"),
        ("classes", 255, "1..254"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_which_rule_it_breaks(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(ModelConfig(), **{field: value})
