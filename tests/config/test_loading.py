"""Loading of settings: which file or flag wins, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from kasthuri_ray.config.loading import (
    GivenSettings,
    builtin_tasks,
    find_config_file,
    override_settings,
    parse_assignment,
    read_config,
    resolve_section,
    resolve_settings,
)
from kasthuri_ray.config.settings import CheckSettings, EvaluateSettings, TrainSettings

SEED_FILES = Path(__file__).parent / "seed_files"


def test_each_layer_wins_over_those_below(files):
    network = files("net.json", {"learning_rate": 0.1, "batch_size": 2, "epochs": 2, "seed": 2})
    config = files("config.json", {"network": {"batch_size": 3, "epochs": 3, "seed": 3}})
    settings = resolve_settings(
        GivenSettings(
            "synapse",
            network,
            config=config,
            assignments=["network.epochs=4", "network.seed=4", "network.seed=5"],
            flags={"network": {"seed": 6}},
        )
    ).network
    assert (settings.momentum, settings.learning_rate) == (0.9, 0.1)
    assert (settings.batch_size, settings.epochs, settings.seed) == (3, 4, 6)
    twice = ["network.seed=4", "network.seed=5"]
    assert resolve_settings(GivenSettings("synapse", network, config=config, assignments=twice)).network.seed == 5


def test_a_task_and_a_network_may_be_given_by_their_content(files, tiny_task):
    by_content = resolve_settings(GivenSettings({**tiny_task, "loss": "focal"}, {"epochs": 2, "encoder_name": "x"}))
    by_file = resolve_settings(
        GivenSettings(files("t.json", {**tiny_task, "loss": "focal"}), files("n.json", {"epochs": 2}))
    )
    assert by_content.task == by_file.task
    assert by_content.network == by_file.network.model_copy(update={"outweightfilename": "network"})
    assert by_content.kept == {"encoder_name": "x"}
    with pytest.raises(ValueError, match=r"^\{\.\.\.\}: no setting task\.nam; did you mean task\.name\?"):
        resolve_settings(GivenSettings({**tiny_task, "nam": "x"}))


def test_the_value_of_a_setting_is_known_before_the_files_are_read(files):
    config = files("c.json", {"segment": {"weights": "a", "output": "b", "tta": True}})
    given = GivenSettings(config=config, assignments=["segment.output=c"], flags={"segment": {"weights": "d"}})
    assert [given.value("segment", key) for key in ("weights", "output", "tta", "mip")] == ["d", "c", True, None]


def test_a_section_that_needs_no_others_is_resolved_without_a_task(files):
    config = files("c.json", {"evaluate": {"annotation": "a", "threshold": 0.25}, "train": {"name": "x"}})
    given = GivenSettings(config=config, assignments=["evaluate.out=b"], flags={"evaluate": {"prediction": "p"}})
    settings = resolve_section(EvaluateSettings, given)
    assert (settings.prediction, settings.annotation, settings.threshold, settings.out) == ("p", "a", 0.25, "b")
    assert settings.cache_size == CheckSettings().cache_size == TrainSettings().cache_size
    with pytest.raises(ValueError, match=r"^--gpus -1: expected greater than or equal to 0$"):
        resolve_section(CheckSettings, GivenSettings(flags={"check": {"gpus": -1}}))
    with pytest.raises(ValueError, match=r"^--gpu: no setting check\.gpu; did you mean check\.gpus\?$"):
        resolve_section(CheckSettings, GivenSettings(flags={"check": {"gpu": 1}}))


def test_a_config_file_may_change_a_single_setting_of_the_default_network(files):
    default = resolve_settings(GivenSettings("synapse"))
    changed = resolve_settings(GivenSettings("synapse", config=files("c.json", {"network": {"epochs": 3}})))
    assert default.network.outweightfilename == "UNet_2D"
    assert changed.network == default.network.model_copy(update={"epochs": 3})


def test_the_loss_of_a_task_wins_over_the_network_file_but_not_over_config_or_set(files):
    task = json.loads(find_config_file("phantom_synapse", "task").read_text())
    with_loss = files("own.json", {**task, "loss": "focal"})
    network = files("net.json", {"loss": "tversky"})
    config = files("c.json", {"network": {"loss": "cross_entropy"}})

    def loss(*names, **overrides):
        return resolve_settings(GivenSettings(*names, **overrides)).network.loss

    assert loss("phantom_synapse", network) == "tversky"
    assert loss(with_loss, network) == "focal"
    assert loss(with_loss, network, config=config) == "cross_entropy"
    assert loss(with_loss, network, assignments=["network.loss=dice_ce"]) == "dice_ce"
    assert loss(with_loss, network, config=config, assignments=["network.loss=dice_ce"]) == "dice_ce"
    assert loss("phantom_synapse", network, assignments=["task.loss=focal"]) == "focal"
    for both in (["network.loss=dice_ce", "task.loss=focal"], ["task.loss=focal", "network.loss=dice_ce"]):
        assert loss("phantom_synapse", network, assignments=both) == "dice_ce"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("network.learning_rate=3e-4", 3e-4),
        ("network.ema=0", 0),
        ("train.verbose=true", True),
        ("task.z_train=[0,14]", [0, 14]),
        ("task.z_train=0,14", [0, 14]),
        ("task.z_train= 0 , 14 ", [0, 14]),
        ("task.z_test=null", None),
        ("network.loss=focal", "focal"),
        ('network.loss="focal"', "focal"),
        ('network.model_args={"depth": 3}', {"depth": 3}),
        ("network.class_weights=1,2.5", [1, 2.5]),
        # A setting that is a string stays one.
        ("task.image_chan=phantom://em?shape=4,64,64&seed=1", "phantom://em?shape=4,64,64&seed=1"),
        ("train.name=12", "12"),
        ("train.name=null", None),
        ('train.name="a=b"', "a=b"),
        ("train.num_workers=2-4", "2-4"),
        ("train.num_workers=2", 2),
    ],
)
def test_a_value_of_set_is_json_or_a_list_or_a_string(text, value):
    target = text.partition("=")[0]
    section, key = target.split(".")
    assert parse_assignment(text) == {section: {key: value}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network.epochs", "--set network.epochs: expected section.key=value, such as network.epochs=VALUE"),
        ("epochs=3", "--set epochs=3: expected section.key=value"),
        ("net.epochs=3", "--set net.epochs=3: no section 'net'; the sections are task, network, train"),
        ("network.epoch=3", "--set network.epoch=3: no setting network.epoch; did you mean network.epochs?"),
        ("network.epochs=many", "--set network.epochs=many: expected a whole number"),
        ("network.epochs=0", "--set network.epochs=0: expected greater than or equal to 1"),
        ("network.optimizer=adam", "--set network.optimizer=adam: expected 'Adam', 'AdamW', 'SGD' or 'Muon'"),
        ("train.num_workers=0", "--set train.num_workers=0: expected N or MIN-MAX"),
        ("network.qqqq=0", "--set network.qqqq=0: no setting network.qqqq"),
    ],
)
def test_a_wrong_assignment_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings(GivenSettings("synapse", assignments=[text]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["synapse", "synapse_task", "synapse_task.json", "synapse.json"])
def test_a_built_in_task_is_found_by_each_of_its_spellings(name):
    assert find_config_file(name, "task").name == "synapse_task.json"


@pytest.mark.parametrize("name", ["UNet_2D", "UNet_2D.json"])
def test_a_built_in_network_is_found_with_and_without_its_ending(name):
    assert find_config_file(name, "network").name == "UNet_2D.json"
    assert find_config_file(name, "network").is_absolute()


def test_an_existing_file_wins_over_a_built_in_name(files):
    files("synapse", "{}")
    files("UNet_2D.json", "{}")
    assert find_config_file("synapse", "task") == Path("synapse")
    assert find_config_file("UNet_2D.json", "network") == Path("UNet_2D.json")


def test_a_folder_of_the_same_name_does_not_hide_a_built_in_task(files, tmp_path):
    (tmp_path / "synapse").mkdir()
    assert find_config_file("synapse", "task").name == "synapse_task.json"


def test_an_unknown_name_is_refused_with_a_list_of_the_known_ones():
    with pytest.raises(FileNotFoundError, match="did you mean synapse") as caught:
        find_config_file("synapses", "task")
    assert all(name in str(caught.value) for name in builtin_tasks())
    assert str(caught.value).startswith("--task synapses: there is no ")
    with pytest.raises(
        FileNotFoundError, match=r"--network nets/UNet_2D: there is no .*; built-in networks are UNet_2D"
    ):
        find_config_file("nets/UNet_2D", "network")


def test_a_missing_task_is_refused_with_a_list_of_the_known_ones():
    with pytest.raises(ValueError, match=r"no task: give --task, one of membrane, phantom_membrane, .* or a file"):
        resolve_settings(GivenSettings())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a",\n}', "own.json is not JSON: Illegal trailing comma|own.json is not JSON: Expecting property"),
        ("[1, 2]", r"own.json must contain a JSON object \{\.\.\.\}, not a list"),
        ("\ufeff\x00", "own.json is not JSON"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_refused_by_name(files, text, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(GivenSettings(files("own.json", text)))


def test_a_config_file_that_is_missing_or_malformed_is_refused(files):
    with pytest.raises(FileNotFoundError, match=r"--config: there is no .*/none\.json"):
        resolve_settings(GivenSettings("synapse", config="none.json"))
    with pytest.raises(ValueError, match=r"c.json: no section 'networks'; the sections are task, network, train"):
        resolve_settings(GivenSettings("synapse", config=files("c.json", {"networks": {}})))
    with pytest.raises(ValueError, match=r"c.json: network is not an object of settings"):
        resolve_settings(GivenSettings("synapse", config=files("c.json", {"network": 3})))


@pytest.mark.parametrize("name", sorted(path.name for path in SEED_FILES.glob("UNet*.json")))
def test_the_network_files_of_the_challenge_are_read_with_all_their_values(name):
    content = json.loads((SEED_FILES / name).read_text())
    settings = resolve_settings(GivenSettings("synapse", str(SEED_FILES / name)))
    network = settings.network.model_dump()
    unused = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
    assert settings.kept == {key: content[key] for key in unused}
    assert {key: network[key] for key in content.keys() - unused - {"augmentations"}} == {
        key: value for key, value in content.items() if key not in unused | {"augmentations"}
    }
    assert network["augmentations"] == "basic"
    assert (network["loss"], network["scheduler"], network["plateau_patience"]) == ("cross_entropy", "plateau", 5)
    assert (network["plateau_factor"], network["early_stopping"], network["early_stopping_delta"]) == (0.5, 10, 0.001)


@pytest.mark.parametrize("name", ["membrane_task.json", "synapse_task.json"])
def test_the_task_files_of_the_challenge_are_read_with_all_their_values(name, files):
    path = shutil.copy(SEED_FILES / name, "copy.json")
    content = json.loads((SEED_FILES / name).read_text())
    task = resolve_settings(GivenSettings(path)).task.model_dump()
    assert {key: task[key] for key in content} == content


@pytest.mark.parametrize("task", builtin_tasks())
def test_every_built_in_task_is_valid_and_has_no_unused_keys(task):
    assert resolve_settings(GivenSettings(task)).kept == {}


@pytest.mark.parametrize("name", sorted(path.name for path in SEED_FILES.glob("UNet*.json")))
def test_the_built_in_networks_have_the_architectures_of_the_challenge(name):
    built_in, challenge = (
        resolve_settings(GivenSettings("synapse", name)),
        resolve_settings(GivenSettings("synapse", str(SEED_FILES / name))),
    )
    assert built_in.kept == {}
    for key in (
        "model_type",
        "n_blocks",
        "start_filters",
        "activation",
        "normalization",
        "conv_mode",
        "dim",
        "classes",
    ):
        assert getattr(built_in.network, key) == getattr(challenge.network, key)
    assert built_in.network.outweightfilename == challenge.network.outweightfilename


def test_written_settings_are_a_config_file_with_the_same_settings(files):
    settings = resolve_settings(
        GivenSettings(
            "phantom_synapse",
            str(SEED_FILES / "UNet_3D.json"),
            assignments=["network.loss=focal", "task.loss=tversky", "task.z_test=null", "train.num_workers=1-2"],
            flags={"train": {"name": "a"}},
        )
    )
    written = {**settings.training_record(), "seed": 0, "versions": {}, "git_commit": None}
    again = resolve_settings(GivenSettings(config=files("settings.json", written)))
    assert again.model_dump(exclude={"kept"}) == settings.model_dump(exclude={"kept"})
    assert read_config(Path("settings.json")).keys() == {"task", "network", "train"}


def test_a_key_that_occurs_twice_is_refused(files):
    twice = files("twice.json", '{"epochs": 3, "model_args": {}, "epochs": 4}')
    with pytest.raises(
        ValueError, match=r"^--network twice.json: the key 'epochs' occurs twice, as 3 and 4; keep one of them$"
    ):
        resolve_settings(GivenSettings("synapse", twice))
    with pytest.raises(ValueError, match=r"inner\.json: the key 'a' occurs twice"):
        resolve_settings(
            GivenSettings("synapse", config=files("inner.json", '{"network": {"model_args": {"a": 1, "a": 1}}}'))
        )
    text = 'network.model_args={"a": 1, "a": 2}'
    with pytest.raises(ValueError, match=r"^--set network\.model_args=.*: the key 'a' occurs twice, as 1 and 2"):
        resolve_settings(GivenSettings("synapse", assignments=[text]))


def test_overriding_settings_checks_the_values_and_changes_nothing_else():
    signed = "https://host/em.zarr?X-Amz-Signature=abc"
    task = {"image_chan": signed, "loss": "tversky", "z_train": [0, 80], "z_val": [80, 90]}
    settings = resolve_settings(GivenSettings("synapse", flags={"task": task}))
    values = {"network.loss": "focal", "task.foreground_share": 0.1, "network.seed": 7}
    changed = override_settings(settings, values, "trial")
    assert (changed.network.loss, changed.network.seed, changed.task.foreground_share) == ("focal", 7, 0.1)
    assert changed.task.image_chan == signed, "it loses its secret only when it is written"
    assert settings.network.loss == "tversky"
    for wrong, message in (
        ({"network.n_blocks": 0}, "trial: network.n_blocks is 0: expected greater than or equal to 1"),
        ({"network.los": "focal"}, "trial: no setting network.los; did you mean network.loss?"),
        ({"task.z_gap": 99}, "trial: task: z_gap 99 leaves nothing of z_val"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            override_settings(settings, wrong, "trial")
        assert str(caught.value).startswith(message)
