"""The template's table of vendors says what the locked LiteLLM says of them, which follows the vendors' own pages."""

import os
import sys

import pytest

from workspace import ROOT

sys.path.insert(0, str(ROOT / "template"))
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network

import litellm
from app.llm.vendors import LITELLM_KEYS, VENDORS
from litellm.types.utils import LlmProviders
from litellm.utils import ProviderConfigManager

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

NOT_TOLD = {"openai", "azure", "gemini", "openrouter", "ollama_chat", "hosted_vllm", "lm_studio"}
"""Vendors whose address LiteLLM keeps elsewhere, or that have none of their own."""
OTHER_PROTOCOL = {"gemini", "ollama", "ollama_chat"}
"""Vendors that LiteLLM speaks to in their own protocol, with other names of the fields."""


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*os.environ} & {key for vendor in VENDORS.values() for key in (*vendor.keys, *vendor.bases)}:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", VENDORS)
def test_litellm_knows_the_vendor(name: str) -> None:
    assert LlmProviders(name)


@pytest.mark.parametrize("name", sorted(VENDORS.keys() - NOT_TOLD))
def test_the_address_and_the_variables_of_keys_are_litellms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert litellm.get_llm_provider(f"{name}/model")[3] == VENDORS[name].base
    if VENDORS[name].needs_key:
        for variable in VENDORS[name].keys:
            with monkeypatch.context() as patch:
                patch.setenv(variable, "a-key")
                assert litellm.get_llm_provider(f"{name}/model")[2] == "a-key"


@pytest.mark.parametrize("name", sorted(VENDORS.keys() - OTHER_PROTOCOL))
def test_fields_have_the_names_that_litellm_sends(name: str) -> None:
    config = ProviderConfigManager.get_provider_chat_config("model", LlmProviders(name))
    assert config
    sent = config.map_openai_params({"max_completion_tokens": 5}, {}, "model", False)
    renamed = VENDORS[name].renames.get("max_completion_tokens", "max_completion_tokens")
    assert {field for field in sent if sent[field]} == {renamed}
    if "stream_options" in VENDORS[name].refuses:
        assert "stream_options" not in config.get_supported_openai_params("model")


def test_each_vendor_with_an_address_names_its_keys() -> None:
    assert {name for name, vendor in VENDORS.items() if vendor.base and vendor.needs_key} <= LITELLM_KEYS.keys()
