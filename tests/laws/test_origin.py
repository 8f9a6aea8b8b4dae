"""Where a backend may be: the table of addresses and URLs that are refused, each with the twin that is taken."""

from __future__ import annotations

import pytest

from broker.backends.address import Origin, fault_of, is_public

METADATA = [
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "::1", "fe80::1",
    "fd12::1", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::1",
]  # fmt: skip
NO_SERVER = ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255"]
PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"]


@pytest.mark.parametrize("address", METADATA)
def test_a_metadata_service_is_no_backend_whatever_is_declared(address: str) -> None:
    assert "metadata" in fault_of(address, allow_private=True)
    assert fault_of(address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_one_only_when_that_is_declared(address: str) -> None:
    assert "allow_private" in fault_of(address, allow_private=False)
    assert fault_of(address, allow_private=True) == ""
    assert not is_public(address)


@pytest.mark.parametrize("address", NO_SERVER)
def test_what_is_no_servers_address_is_none(address: str) -> None:
    assert fault_of(address, allow_private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_one(address: str) -> None:
    assert fault_of(address, allow_private=False) == ""
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest", "https://[fd00:ec2::254]/", "https://metadata.google.internal/",
        "https://127.0.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/",
        "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/", "https://0x7f.1/",
        "https://allowed.example@evil.example/", "https://evil.example#@allowed.example/",
        "https://allowed.example\\@evil.example/", "https://allowed.example./", "https://аllowed.example/",
        "https://{host}/", "https://allowed.example/{+path}", "//evil.example/", "file:///etc/passwd",
        "unix:///run/docker.sock", "http://allowed.example/", "https://allowed.example/?a=1", "https://a b.example/",
        "https://allowed.example:0/", "https://allowed.example:99999/", "https://allowed.example/../x",
        "https://allowed.example/%2e%2e/x", "https:///x", "https://",
    ],
)  # fmt: skip
def test_a_url_that_could_mean_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Origin.parse(url, allow_private=False)


@pytest.mark.parametrize(
    ("url", "private", "origin"),
    [
        ("https://allowed.example/api", False, "https://allowed.example/api"),
        ("https://ALLOWED.example:8443/", False, "https://allowed.example:8443"),
        ("https://1.1.1.1/", False, "https://1.1.1.1"),
        ("https://[2606:4700::1111]:444/x", False, "https://[2606:4700::1111]:444/x"),
        ("http://127.0.0.1:8790", True, "http://127.0.0.1:8790"),
    ],
)
def test_a_plain_url_is_taken(url: str, private: bool, origin: str) -> None:
    assert Origin.parse(url, allow_private=private).url == origin
