from deploykit.contract.optional import Requirement


def test_a_folder_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "some_vendor_runtime").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not Requirement("some_vendor_runtime").installed
    (tmp_path / "some_vendor_runtime" / "__init__.py").touch()
    assert Requirement("some_vendor_runtime").installed


def test_modules_and_what_is_not_there():
    assert Requirement("json").installed
    assert not Requirement("no_such_module_at_all").installed
    assert Requirement("no_such_module_at_all", "no-such").version is None
