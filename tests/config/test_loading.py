"""Where settings come from, and which of two wins."""

import json
import shutil
from pathlib import Path

import pytest

from kasthuri_ray.config.loading import (
    builtin_tasks,
    find_config_file,
    override_settings,
    parse_assignment,
    read_config,
    resolve_settings,
)

SEED_FILES = Path(__file__).parent / "seed_files"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, and `write(name, content)` for files in it."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: object) -> str:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return name

    return write


def test_each_layer_wins_over_those_below(files):
    network = files("net.json", {"learning_rate": 0.1, "batch_size": 2, "epochs": 2, "seed": 2})
    config = files("config.json", {"network": {"batch_size": 3, "epochs": 3, "seed": 3}})
    found = resolve_settings(
        "synapse",
        network,
        config=config,
        assignments=["network.epochs=4", "network.seed=4", "network.seed=5"],
        flags={"network": {"seed": 6}},
    ).network
    assert (found.momentum, found.learning_rate, found.batch_size, found.epochs, found.seed) == (0.9, 0.1, 3, 4, 6)
    assert (
        resolve_settings(
            "synapse", network, config=config, assignments=["network.seed=4", "network.seed=5"]
        ).network.seed
        == 5
    )


def test_config_changes_one_setting_of_the_usual_network(files):
    plain = resolve_settings("synapse", None)
    one = resolve_settings("synapse", None, config=files("c.json", {"network": {"epochs": 3}}))
    assert plain.network.outweightfilename == "UNet_2D"
    assert one.network == plain.network.model_copy(update={"epochs": 3})


def test_a_tasks_own_loss_wins_over_the_network_files_alone(files):
    task = json.loads(find_config_file("phantom_synapse", "task").read_text())
    own = files("own.json", {**task, "loss": "focal"})
    network = files("net.json", {"loss": "tversky"})
    config = files("c.json", {"network": {"loss": "cross_entropy"}})

    def loss(*names, **above):
        return resolve_settings(*names, **above).network.loss

    assert loss("phantom_synapse", network) == "tversky"
    assert loss(own, network) == "focal"
    assert loss(own, network, config=config) == "cross_entropy"
    assert loss(own, network, assignments=["network.loss=dice_ce"]) == "dice_ce"
    assert loss(own, network, config=config, assignments=["network.loss=dice_ce"]) == "dice_ce"
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
        # Text stays text.
        ("task.image_chan=phantom://em?shape=4,64,64&seed=1", "phantom://em?shape=4,64,64&seed=1"),
        ("train.name=12", "12"),
        ("train.name=null", None),
        ('train.name="a=b"', "a=b"),
        ("train.num_workers=2-4", "2-4"),
        ("train.num_workers=2", 2),
    ],
)
def test_a_value_is_json_or_a_list_or_text(text, value):
    target = text.partition("=")[0]
    section, key = target.split(".")
    assert parse_assignment(text) == {section: {key: value}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network.epochs", "--set network.epochs: expected section.key=value, such as network.epochs=30"),
        ("epochs=3", "--set epochs=3: expected section.key=value"),
        ("net.epochs=3", "--set net.epochs=3: no section 'net'; there are task, network, train"),
        ("network.epoch=3", "--set network.epoch=3: no setting network.epoch; did you mean epochs?"),
        ("network.epochs=many", '--set network.epochs=many: network.epochs is "many": expected a valid integer'),
        ("network.epochs=0", "--set network.epochs=0: network.epochs is 0: expected greater than or equal to 1"),
        ("network.optimizer=adam", "network.optimizer is \"adam\": expected 'Adam', 'AdamW' or 'SGD'"),
        ("train.num_workers=0", "--set train.num_workers=0: train.num_workers is 0: expected N or MIN-MAX"),
        ("network.qqqq=0", "--set network.qqqq=0: no setting network.qqqq"),
    ],
)
def test_a_wrong_assignment_is_refused_in_words(text, words):
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings("synapse", None, assignments=[text])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["synapse", "synapse_task", "synapse_task.json", "synapse.json"])
def test_a_task_of_ours_has_many_spellings(name):
    assert find_config_file(name, "task").name == "synapse_task.json"


@pytest.mark.parametrize("name", ["UNet_2D", "UNet_2D.json"])
def test_a_network_of_ours_goes_without_its_ending(name):
    assert find_config_file(name, "network").name == "UNet_2D.json"
    assert find_config_file(name, "network").is_absolute()


def test_an_existing_file_wins_over_a_name_of_ours(files):
    files("synapse", "{}")
    files("UNet_2D.json", "{}")
    assert find_config_file("synapse", "task") == Path("synapse")
    assert find_config_file("UNet_2D.json", "network") == Path("UNet_2D.json")


def test_a_folder_of_the_same_name_is_no_file(files, tmp_path):
    (tmp_path / "synapse").mkdir()
    assert find_config_file("synapse", "task").name == "synapse_task.json"


def test_a_name_that_is_none_names_what_there_is():
    with pytest.raises(FileNotFoundError, match="did you mean synapse") as caught:
        find_config_file("synapses", "task")
    assert all(name in str(caught.value) for name in builtin_tasks())
    assert str(caught.value).startswith("no task 'synapses': it is neither a file nor one of membrane, ")
    with pytest.raises(FileNotFoundError, match="no network 'nets/UNet_2D': it is neither a file nor one of UNet_2D"):
        find_config_file("nets/UNet_2D", "network")


def test_no_task_at_all_names_those_of_ours():
    with pytest.raises(ValueError, match=r"no task: give --task, one of membrane, phantom_membrane, .* or a file"):
        resolve_settings(None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "a",\n}', "own.json is not JSON: Illegal trailing comma|own.json is not JSON: Expecting property"),
        ("[1, 2]", "own.json holds no JSON object but list"),
        ("\ufeff\x00", "own.json is not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_refused_by_name_and_line(files, text, words):
    with pytest.raises(ValueError, match=words):
        resolve_settings(files("own.json", text), None)


def test_a_config_that_is_not_there_or_has_other_sections_is_refused(files):
    with pytest.raises(FileNotFoundError, match=r"there is no file none\.json"):
        resolve_settings("synapse", None, config="none.json")
    with pytest.raises(ValueError, match=r"c.json: no section 'networks'; there are task, network, train"):
        resolve_settings("synapse", None, config=files("c.json", {"networks": {}}))
    with pytest.raises(ValueError, match=r"c.json: network is not an object of settings"):
        resolve_settings("synapse", None, config=files("c.json", {"network": 3}))


@pytest.mark.parametrize("name", sorted(path.name for path in SEED_FILES.glob("UNet*.json")))
def test_the_challenges_own_network_files_train_with_the_values_they_hold(name):
    given = json.loads((SEED_FILES / name).read_text())
    settings = resolve_settings("synapse", str(SEED_FILES / name))
    found = settings.network.model_dump()
    unread = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
    assert settings.kept == {key: given[key] for key in unread}
    assert {key: found[key] for key in given.keys() - unread - {"augmentations"}} == {
        key: value for key, value in given.items() if key not in unread | {"augmentations"}
    }
    assert found["augmentations"] == "basic"
    assert (found["loss"], found["scheduler"], found["plateau_patience"]) == ("cross_entropy", "plateau", 5)
    assert (found["plateau_factor"], found["early_stopping"], found["early_stopping_delta"]) == (0.5, 10, 0.001)


@pytest.mark.parametrize("name", ["membrane_task.json", "synapse_task.json"])
def test_the_challenges_own_task_files_are_read_as_they_are(name, files):
    path = shutil.copy(SEED_FILES / name, "their.json")
    given = json.loads((SEED_FILES / name).read_text())
    found = resolve_settings(path, None).task.model_dump()
    assert {key: found[key] for key in given} == given


@pytest.mark.parametrize("task", builtin_tasks())
def test_every_task_of_ours_is_allowed(task):
    assert resolve_settings(task, None).kept == {}


@pytest.mark.parametrize("name", sorted(path.name for path in SEED_FILES.glob("UNet*.json")))
def test_the_networks_of_ours_are_the_challenges(name):
    ours, theirs = resolve_settings("synapse", name), resolve_settings("synapse", str(SEED_FILES / name))
    assert ours.kept == {}
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
        assert getattr(ours.network, key) == getattr(theirs.network, key)
    assert ours.network.outweightfilename == theirs.network.outweightfilename


def test_settings_written_are_a_config_that_gives_them_again(files):
    settings = resolve_settings(
        "phantom_synapse",
        str(SEED_FILES / "UNet_3D.json"),
        assignments=["network.loss=focal", "task.loss=tversky", "task.z_test=null", "train.num_workers=1-2"],
        flags={"train": {"name": "a"}},
    )
    written = {**settings.of_training(), "seed": 0, "versions": {}, "git_commit": None}
    again = resolve_settings(None, None, config=files("settings.json", written))
    assert again.model_dump(exclude={"kept"}) == settings.model_dump(exclude={"kept"})
    assert read_config(Path("settings.json")).keys() == {"task", "network", "train"}


def test_what_a_config_says_instead_of_named_files_is_noted(files):
    network = files("net.json", {"learning_rate": 0.1, "epochs": 2, "seed": 2})
    changes = {"learning_rate": 0.5, "epochs": 2, "loss": "dice_ce", "seed": 3, "optimizer": "SGD", "momentum": 0.5}
    config = files("best.json", {"network": {**changes, "start_filters": 8}})
    notes = resolve_settings("synapse", network, config=config, assignments=["network.seed=7"]).notes
    assert notes == {
        "network": "best.json stands above --network net.json: network.start_filters is 8, not 32; network.optimizer "
        "is SGD, not Adam; network.learning_rate is 0.5, not 0.1; network.momentum is 0.5, not 0.9; and 1 more (--set "
        "stands above both)"
    }
    assert resolve_settings("synapse", None, config=config).notes == {}
    assert resolve_settings("synapse", network, config=files("same.json", {"network": {"epochs": 2}})).notes == {}
    lacking = files("lacking.json", {"name": "a"})
    whole = resolve_settings("synapse", None).task.model_dump(mode="json")
    assert resolve_settings(lacking, None, config=files("whole.json", {"task": whole})).notes == {}


def test_where_a_config_has_the_run_lie_is_noted_unless_it_is_typed(files):
    config = files("settings.json", {"train": {"name": "first", "storage": "s3://lab/runs", "compile": "off"}})
    assert resolve_settings("synapse", None, config=config).notes == {
        "train": "settings.json says where the run lies: train.storage is s3://lab/runs, not outputs; train.name is "
        "first, not none (--name and --storage stand above it)"
    }
    typed = {"train": {"name": "second", "storage": "runs"}}
    assert resolve_settings("synapse", None, config=config, flags=typed).notes == {}


def test_notes_are_no_settings(files):
    config = files("settings.json", {"train": {"name": "first"}})
    settings = resolve_settings("synapse", None, config=config)
    assert settings.notes
    assert "notes" not in settings.model_dump()
    assert "first (" not in json.dumps(settings.of_training())


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("synapes", "synapse"),
        ("Synapse", "synapse"),
        ("membranes", "membrane"),
        ("synapse", None),
        ("membrane", None),
        ("mitochondria", None),
        ("axon", None),
        ("", None),
    ],
)
def test_a_kind_of_task_that_is_nearly_a_known_one_is_taken_and_noted(kind, meant):
    settings = resolve_settings("synapse", None, assignments=[f"task.task_type={kind}"])
    assert settings.task.task_type == kind
    expected = f"task.task_type '{kind}' is taken as a kind of its own, without what is known of '{meant}'; did you"
    assert list(settings.notes) == ([] if meant is None else ["task.task_type"])
    assert meant is None or settings.notes["task.task_type"].startswith(expected)


SPLIT = {"image": "a.zarr", "annotation": "b.zarr", "box": ":,:,:"}


def boxed(files, **left_out) -> str:
    regions = {split: [{**SPLIT}] for split in ("train", "val", "test")}
    for split, key in left_out.items():
        del regions[split][0][key]
    return files("boxed.json", {"image_chan": "x.zarr", "annotation_chan": "y.zarr", "boxes": regions})


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ({"flags": {"task": {"image_chan": "c.zarr"}}}, '--image would change nothing: .* "image" out of the regions'),
        ({"flags": {"task": {"annotation_chan": "c.zarr"}}}, "--annotation would change nothing"),
        ({"assignments": ["task.image_chan=c.zarr"]}, "--set task.image_chan=c.zarr would change nothing"),
    ],
)
def test_an_image_that_no_region_would_take_is_refused(files, above, words):
    with pytest.raises(ValueError, match=words):
        resolve_settings(boxed(files), None, **above)


def test_an_image_that_a_region_takes_is_taken(files):
    flags = {"task": {"image_chan": "c.zarr"}}
    task = resolve_settings(boxed(files, val="image"), None, flags=flags).task
    assert [task.regions(split)[0].image for split in ("train", "val")] == ["a.zarr", "c.zarr"]
    with pytest.raises(ValueError, match=r"every region of task\.boxes names an annotation of its own"):
        resolve_settings(boxed(files, val="image"), None, flags={"task": {"annotation_chan": "c.zarr"}})
    resolve_settings(boxed(files), None)


def test_a_mistake_of_two_settings_is_blamed_on_what_was_typed(files):
    def refused(*assignments):
        with pytest.raises(ValueError, match=r".") as caught:
            resolve_settings("synapse", None, assignments=assignments)
        return str(caught.value)

    assert refused("task.z_gap=50").startswith("--set task.z_gap=50: task: z_gap 50 leaves nothing of z_val")
    assert refused("network.class_weights=1,2,3").startswith(
        "--set network.class_weights=1,2,3: network: class_weights"
    )
    assert refused("network.classes=3", "network.class_weights=1,2").startswith("--set network.class_weights=1,2: ")
    assert refused("task.image_chan=null").startswith("--set task.image_chan=null: task: needs image_chan")


def test_a_key_that_is_there_twice_is_refused(files):
    twice = files("twice.json", '{"epochs": 3, "model_args": {}, "epochs": 4}')
    with pytest.raises(
        ValueError, match=r"^twice.json: the key 'epochs' is there twice, as 3 and 4; keep one of them$"
    ):
        resolve_settings("synapse", twice)
    with pytest.raises(ValueError, match=r"inner\.json: the key 'a' is there twice"):
        resolve_settings("synapse", None, config=files("inner.json", '{"network": {"model_args": {"a": 1, "a": 1}}}'))
    text = 'network.model_args={"a": 1, "a": 2}'
    with pytest.raises(ValueError, match=r"^--set network\.model_args=.*: the key 'a' is there twice, as 1 and 2"):
        resolve_settings("synapse", None, assignments=[text])


def test_values_are_put_in_place_checked_and_leave_the_rest_as_it_was():
    signed = "https://host/em.zarr?X-Amz-Signature=abc"
    settings = resolve_settings("synapse", None, flags={"task": {"image_chan": signed, "loss": "tversky"}})
    found = override_settings(
        settings, {"network.loss": "focal", "task.foreground_share": 0.1, "network.seed": 7}, "trial"
    )
    assert (found.network.loss, found.network.seed, found.task.foreground_share) == ("focal", 7, 0.1)
    assert found.task.image_chan == signed  # written out it loses its secret
    assert settings.network.loss == "tversky"
    for values, words in (
        ({"network.n_blocks": 0}, "trial: network.n_blocks is 0: expected greater than or equal to 1"),
        ({"network.los": "focal"}, "trial: no setting network.los; did you mean loss?"),
        ({"task.z_gap": 99}, "trial: task: z_gap 99 leaves nothing of z_val"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            override_settings(settings, values, "trial")
        assert str(caught.value).startswith(words)
