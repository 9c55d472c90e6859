"""From a user's URL and options to one destination, and what every wrong one is answered."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from remote_logging import ConfigurationError
from remote_logging.location import Location, Options, Template, merge

from .support import run_script

RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
SECRETS: Options = {
    "key": "sesame-key",
    "secret": "sesame-secret",
    "token": "sesame-token",
    "endpoint_url": "http://user:sesame@minio:9000",
    "client_kwargs": {
        "aws_access_key_id": "sesame-id",
        "aws_secret_access_key": "sesame-secret",
        "aws_session_token": "sesame-session",
        "endpoint_url": "http://user:sesame@minio:9000",
        "region_name": "eu-central-1",
    },
    "config_kwargs": {"proxies": {"https": "http://user:sesame@proxy:3128"}, "s3": {"addressing_style": "path"}},
    "s3_additional_kwargs": {"SSECustomerKey": "sesame", "ACL": "private"},
}


def resolved(url: str | os.PathLike[str], options: Options | None = None, now: float | None = None) -> Location:
    return Template(url, options).resolve(now)


def refusal(url: Any, options: Any = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        Template(url, options)
    return caught.value


# -- fields -------------------------------------------------------------------------------------------------------------


def test_host_and_pid_are_those_of_this_process() -> None:
    assert resolved("s3://b/{host}/{pid}.log").path == f"b/{socket.gethostname()}/{os.getpid()}.log"


@pytest.mark.parametrize("variable", RANKS[:3])
def test_the_rank_is_that_of_the_launcher(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "3")
    assert resolved("s3://b/{rank}-{local_rank}.log").path == "b/3-0.log"


@pytest.mark.parametrize("variable", RANKS[3:])
def test_the_local_rank_is_that_of_the_launcher(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "3")
    assert resolved("s3://b/{rank}-{local_rank}.log").path == "b/0-3.log"


def test_the_time_field_is_the_local_time_that_is_given() -> None:
    now = time.mktime((2026, 1, 31, 23, 59, 58, 0, 0, -1))
    assert resolved("s3://b/{time:%Y/%m-%d}/{time:%H.%M.%S}.log", now=now).path == "b/2026/01-31/23.59.58.log"


def test_the_time_field_is_the_present_by_default() -> None:
    before = time.strftime("%Y")
    assert resolved("s3://b/{time:%Y}.log").path[2:6] in (before, time.strftime("%Y"))  # New Year's Eve


@pytest.mark.parametrize(("url", "varies"), [("s3://b/{time:%Y}.log", True), ("s3://b/{run}.log", False), ("s3://b/a", False)])
def test_only_a_time_field_makes_a_destination_vary(url: str, varies: bool) -> None:
    assert Template(url).varies_with_time is varies


def test_doubled_braces_are_braces() -> None:
    assert resolved("s3://b/{{host}}/{{}}.log").path == "b/{host}/{}.log"


def test_a_field_cannot_add_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_RUN", "user/run")
    assert resolved("s3://b/{run}/training.log").path == "b/user-run/training.log"


def test_the_run_name_stays_and_child_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_RUN", "")  # so that monkeypatch takes away what is written there
    path = resolved("s3://b/{run}.log").path
    assert path != "b/.log"
    assert resolved("s3://b/{run}.log").path == path
    child = run_script("from remote_logging.location import Template; print(Template('s3://b/{run}.log').resolve().path)")
    assert child.stdout.strip() == path


def test_a_run_name_of_the_user_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_RUN", "imagenet-7")
    assert resolved("s3://b/{run}.log").path == "b/imagenet-7.log"


def test_the_template_keeps_its_fields() -> None:
    # What a later process with another pid recognizes the leftovers of this one by.
    assert resolved("s3a://b/{host}/{pid}.log?region=eu").template == "s3://b/{host}/{pid}.log"


# -- protocols ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://b/a.log", "s3://b/a.log"),
        ("s3a://b/a.log", "s3://b/a.log"),
        ("S3://b/a.log", "s3://b/a.log"),
        ("file:///var/a.log", "file:///var/a.log"),
        ("local:///var/a.log", "file:///var/a.log"),
        ("/var/x/../a.log", "file:///var/a.log"),
        ("memory://a.log", "memory://a.log"),
    ],
)
def test_all_spellings_of_a_destination_are_one(url: str, canonical: str) -> None:
    assert resolved(url).url == canonical


def test_a_relative_path_lies_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = resolved("logs/a.log")
    assert (location.protocol, location.path) == ("file", str(tmp_path / "logs/a.log"))


@pytest.mark.parametrize("url", ["~/a.log", "file://~/a.log"])
def test_a_tilde_is_the_home_directory(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolved(url).path == str(tmp_path / "a.log")


def test_a_path_object_is_a_local_file(tmp_path: Path) -> None:
    assert resolved(tmp_path / "a.log").path == str(tmp_path / "a.log")


def test_a_question_mark_belongs_to_the_name_of_a_local_path(tmp_path: Path) -> None:
    assert resolved(f"{tmp_path}/what?.log").path == f"{tmp_path}/what?.log"


# -- options ------------------------------------------------------------------------------------------------------------


def test_query_parameters_are_options_and_no_part_of_the_name() -> None:
    location = resolved(
        "s3://b/a.log?use_accelerate_endpoint=true&region=eu-west-1&profile=lab&storage_class=STANDARD_IA&anon=0"
    )
    assert location.url == "s3://b/a.log"
    assert location.options == {
        "config_kwargs": {"s3": {"use_accelerate_endpoint": True}},
        "client_kwargs": {"region_name": "eu-west-1"},
        "profile": "lab",
        "s3_additional_kwargs": {"StorageClass": "STANDARD_IA"},
        "anon": False,
    }


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_a_boolean_of_a_query_can_be_true_in_words(text: str) -> None:
    assert resolved(f"s3://b/a.log?anon={text}").options == {"anon": True}


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no", "off"])
def test_a_boolean_of_a_query_can_be_false_in_words(text: str) -> None:
    assert resolved(f"s3://b/a.log?anon={text}").options == {"anon": False}


def test_an_encoded_query_value_is_decoded() -> None:
    assert resolved("s3://b/a.log?endpoint_url=http%3A%2F%2Fminio%3A9000").options == {"endpoint_url": "http://minio:9000"}


def test_query_and_storage_options_are_merged_key_by_key() -> None:
    given: Options = {"config_kwargs": {"s3": {"addressing_style": "path"}, "max_pool_connections": 5}, "key": "k"}
    location = resolved("s3://b/a.log?use_dualstack_endpoint=true&region=eu", given)
    assert location.options == {
        "config_kwargs": {"s3": {"use_dualstack_endpoint": True, "addressing_style": "path"}, "max_pool_connections": 5},
        "client_kwargs": {"region_name": "eu"},
        "key": "k",
    }


def test_storage_options_win_over_the_query() -> None:
    location = resolved("s3://b/a.log?region=eu&anon=true", {"anon": False, "client_kwargs": {"region_name": "us"}})
    assert location.options == {"client_kwargs": {"region_name": "us"}, "anon": False}


def test_merging_leaves_what_was_given_as_it_was() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


# -- identity and secrets -----------------------------------------------------------------------------------------------


def test_no_secret_is_in_what_is_written_or_shown() -> None:
    location = resolved("s3://b/a.log", SECRETS)
    assert "sesame" not in location.url + location.template + location.identity() + json.dumps(location.document())


def test_what_finds_the_store_again_is_written() -> None:
    assert resolved("s3://b/{pid}.log", SECRETS).document() == {
        "url": f"s3://b/{os.getpid()}.log",
        "template": "s3://b/{pid}.log",
        "options": {
            "endpoint_url": "http://minio:9000",
            "client_kwargs": {"region_name": "eu-central-1", "endpoint_url": "http://minio:9000"},
            "config_kwargs": {"s3": {"addressing_style": "path"}},
            "s3_additional_kwargs": {"ACL": "private"},
        },
    }


def test_a_destination_is_found_again_from_its_document_and_credentials() -> None:
    location = resolved("s3://b/{pid}.log", SECRETS)
    again = Location.from_document(json.loads(json.dumps(location.document())), {"client_kwargs": {"aws_session_token": "t"}})
    assert (again.url, again.path, again.template) == (location.url, location.path, location.template)
    assert again.identity() == location.identity()
    assert again.options["client_kwargs"]["aws_session_token"] == "t"
    assert again.options["client_kwargs"]["region_name"] == "eu-central-1"


def test_one_key_on_two_endpoints_is_two_destinations() -> None:
    endpoints: list[Options] = [
        {},
        {"endpoint_url": "http://a"},
        {"endpoint_url": "http://b"},
        {"client_kwargs": {"endpoint_url": "http://c"}},
    ]
    assert len({Template("s3://b/a.log", options).resolve().identity() for options in endpoints}) == 4


def test_credentials_and_tuning_do_not_change_the_identity() -> None:
    options = {"key": "k", "config_kwargs": {"max_pool_connections": 5}, "client_kwargs": {"region_name": "eu"}}
    assert resolved("s3://b/a.log", options).identity() == resolved("s3://b/a.log").identity()


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"])
def test_an_endpoint_of_the_environment_is_as_good_as_an_option(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, optional = resolved("s3://b/a.log"), resolved("s3://b/a.log", {"endpoint_url": "http://minio:9000"})
    monkeypatch.setenv(variable, "http://minio:9000")
    location = resolved("s3://b/a.log")
    assert location.options == {"endpoint_url": "http://minio:9000"}
    assert location.identity() == optional.identity() != plain.identity()


def test_the_more_specific_endpoint_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert resolved("s3://b/a.log").options == {"endpoint_url": "http://s3"}


@pytest.mark.parametrize("options", [{"endpoint_url": "http://mine"}, {"client_kwargs": {"endpoint_url": "http://mine"}}])
def test_an_endpoint_option_wins_over_the_environment(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://theirs")
    assert resolved("s3://b/a.log", options).options == options


def test_an_endpoint_variable_of_s3_does_not_reach_other_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert resolved("memory://a.log").options == {}


def test_memory_belongs_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, file = resolved("memory://a.log"), resolved("/a.log")
    here = memory.identity(), file.identity()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert memory.identity() != here[0]
    assert file.identity() == here[1]


def test_two_hosts_have_two_spools(monkeypatch: pytest.MonkeyPatch) -> None:
    location = resolved("s3://b/a.log")
    here = location.identity()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert location.identity() != here


@pytest.mark.parametrize(
    ("url", "sibling"),
    [
        ("s3://b/run/training.log", "s3://b/run/training.me.log"),
        ("s3://b/run.7/training", "s3://b/run.7/training.me"),
        ("s3://b/.log", "s3://b/.log.me"),
        ("file:///var/training.log", "file:///var/training.me.log"),
        ("memory://training.log", "memory://training.me.log"),
    ],
)
def test_a_sibling_lies_beside_and_keeps_the_suffix(url: str, sibling: str) -> None:
    assert resolved(url).sibling("me").url == sibling


def test_a_sibling_is_of_the_same_store() -> None:
    location = resolved("s3://b/{pid}.log", SECRETS)
    sibling = location.sibling("me")
    assert (sibling.options, sibling.template) == (location.options, location.template)


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason", "remedy"),
    [
        ("", "the url is ''", "Give a string such as 's3://bucket/run/training.log' or a local path"),
        ("  ", "the url is '  '", "Give a string"),
        ("ftp://host/a.log", "unknown protocol 'ftp'", "Known: s3://"),
        ("simplecache::s3://b/a.log", "unknown protocol 'simplecache::s3'", "Known: s3://"),
        ("adl://lake/a.log", "retired", "Use abfs://"),
        ("s3:///a.log", "the bucket name is missing", "Write s3://bucket/folder/training.log"),
        ("s3://b", "the object's name is missing after the bucket", "Write s3://b/folder/training.log"),
        ("s3://b/", "the object's name is missing after the bucket", "Write s3://b/folder/training.log"),
        ("s3://b/run/", "the url names a folder", "Add the name of the file"),
        ("memory://", "the url names a folder", "Add the name of the file"),
        ("s3://b/{uid}.log", "unknown field {uid}", "Known fields: {host} {pid} {rank} {local_rank} {run}"),
        ("s3://b/{}.log", "unknown field {}", "Known fields: {host}"),
        ("s3://b/{host!r}.log", "unknown field {host!r}", "Known fields: {host}"),
        ("s3://b/{pid:>8}.log", "unknown field {pid}", "Known fields: {host}"),
        ("s3://b/{host.log", "a brace is not closed", "write {{ for a brace"),
        ("s3://b/host}.log", "a brace is not closed or not opened", "write {{ for a brace"),
        ("s3://b/{time}.log", "{time} needs a format", "Write {time:%Y-%m-%d}"),
        ("s3://b/{offset}.log", "segment layout", "Leave the field out"),
        ("s3://b/a.log?acceleration=1", "'acceleration' is no option of s3:// that a url can set", "storage_options"),
        ("s3://b/a.log?acceleration=1", "acceleration", "Known: acl, addressing_style, anon"),
        ("memory://a.log?region=eu", "'region' is no option of memory://", "storage_options"),
        ("s3://b/a.log?anon=maybe", "anon='maybe' is no bool", "Write true, false"),
        ("s3://b/a.log?anon=", "anon='' is no bool", "Write true, false"),
        ("s3:/b/a.log", "a slash is missing", "Write s3://b/a.log"),
        ("s3://b/a.log.gz", "a compressed file cannot grow", "without the compression suffix"),
        ("/var/log/a.zst", "a compressed file cannot grow", "without the compression suffix"),
        ("s3://key:sesame@b/a.log", "credentials in a url", "environment variable, profile or storage_options"),
        ("s3://AKIA@b/a.log", "credentials in a url", "environment variable, profile or storage_options"),
        ("memory://user:sesame@b/a.log", "credentials in a url", "environment variable, profile or storage_options"),
        (
            "s3://b/a.log?use_accelerate_endpoint=true&endpoint_url=http://minio",
            "transfer acceleration and a custom endpoint exclude each other",
            "Leave out use_accelerate_endpoint, or the endpoint_url",
        ),
    ],
)
def test_a_wrong_url_is_refused_with_its_reason_and_its_remedy(url: str, reason: str, remedy: str) -> None:
    error = refusal(url)
    assert reason in error.reason and remedy in error.hint
    assert reason in str(error) and remedy in str(error)


def test_a_refusal_names_the_url() -> None:
    assert str(refusal("s3://b/run/?anon=true")).startswith("s3://b/run/: the url names a folder")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:sesame@b/a.log",
        "s3://key:se@sesame@b/a.log",
        "memory://user:sesame@b/a.log",
        "ftp://user:sesame@host/a.log",
        "adl://user:sesame@lake/a.log",
        "s3://b/a.log?secret=sesame",
        "s3://b/a.log.gz?key=sesame",
    ],
)
def test_a_refusal_does_not_repeat_a_secret(url: str) -> None:
    error = refusal(url)
    assert "sesame" not in f"{error} {error!r} {error.url} {error.reason} {error.hint}"


@pytest.mark.parametrize("url", ["s3://key:ses/sesame@b/a.log", "s3://key:ses/sesame@b/run/"])
def test_a_secret_with_a_slash_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    # Half of all AWS secret keys hold a slash, and then the authority of the url ends in the middle of the secret.
    error = refusal(url)
    assert "credentials in a url" in error.reason and "sesame" not in str(error)


@pytest.mark.parametrize("given", [None, 5, b"s3://b/a.log", ["s3://b/a.log"]])
def test_a_url_that_is_no_text_is_refused(given: object) -> None:
    error = refusal(given)
    assert repr(given) in error.reason and "Give a string" in error.hint


@pytest.mark.parametrize("url", ["logs/", "/var/logs/", "file:///var/logs/"])
def test_a_local_path_that_names_a_folder_is_refused(url: str) -> None:
    error = refusal(url)
    assert "the url names a folder" in error.reason and "Add the name of the file" in error.hint


def test_a_refusal_shows_an_at_sign_of_the_key() -> None:
    assert refusal("s3://b/user@example.com/").url == "s3://b/user@example.com/"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_acceleration_and_an_endpoint_of_the_environment_exclude_each_other(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://minio:9000")
    error = refusal("s3://b/a.log", {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}})
    assert "exclude each other" in error.reason and "AWS_ENDPOINT_URL" in error.hint


@pytest.mark.parametrize("given", [["key"], "key", 5])
def test_storage_options_that_are_no_dict_are_refused(given: object) -> None:
    error = refusal("s3://b/a.log", given)
    assert f"storage_options is a {type(given).__name__}" in error.reason and "Give a dict" in error.hint


def test_a_store_whose_library_is_missing_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_s3fs(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "s3fs" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_s3fs)
    error = refusal("s3://b/a.log")
    assert "s3:// needs a package that is not installed" in error.reason
    assert "pip install 'remote-logging[s3]'" in error.hint
    assert resolved("memory://a.log").protocol == "memory"


@pytest.mark.parametrize("url", ["gs://b/a.log", "abfs://c/a.log", "hdfs://host/a.log"])
def test_nothing_is_to_be_installed_for_a_store_that_this_version_cannot_use(url: str) -> None:
    error = refusal(url)
    assert "not supported by this version" in error.reason and "pip install" not in error.hint


def test_a_refusal_is_a_value_error() -> None:
    assert isinstance(refusal("ftp://host/a.log"), ValueError)
