"""Filters of Metaflow's lists: what they keep, what the store is asked for, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.exceptions import UsageError
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service.metaflow_filters import MAX_LIMIT, RUN_FIELDS, Query, parse

RUN: dict[str, Any] = {
    "flow_id": "Flow",
    "run_number": 12,
    "run_id": None,
    "user_name": "matias",
    "status": "succeeded",
    "ts_epoch": 1_000_500,
    "finished_at": None,
    "last_heartbeat_ts": None,
    "tags": ["blue", "100%"],
    "system_tags": ["user:matias", "runtime:dev"],
}


def asked(*filters: str) -> Query:
    return parse([tuple(each.split("=", 1)) for each in filters], RUN_FIELDS)


@pytest.mark.parametrize(
    "kept",
    [
        *("run_number=12", "run_number:eq=12", "run_number:lt=60&run_number:gt=4", "run_number:ne=40"),
        *("run_number:le=12", "run_number:ge=12", "run_number:eq=3,12", "run_number:ne=name", "run_number:co=1"),
        *("user_name=dipper,matias", "user_name:co=atia", "user_name:sw=mati", "user_name:ew=tias"),
        *("user_name:li=M%t_as,%IAS", "user_name:li=%at%as", "user_name:gt=ma", "user:eq=matias", "user:eq=x,matias"),
        *("run_id:is=null", "finished_at:is=null", "run_id=null", "user_name:ne=null"),
        *("status=completed", "status:eq=running,succeeded", "status:ne=failed"),
        *("ts_epoch:ge=1000500&ts_epoch:le=1000500", "ts_epoch:eq=1000500", "ts_epoch:lt=1000501"),
        *("_tags=blue,runtime:dev", "_tags:all=user:matias", "_tags:any=red,blue", "_tags:likeall=blu,untime"),
        *("_tags:likeany=red,lue", "_limit=5"),
    ],
)
def test_filters_that_keep_a_run(kept):
    assert asked(*kept.split("&")).keeps(RUN)


@pytest.mark.parametrize(
    "dropped",
    [
        *("run_number:ne=12", "run_number:lt=12", "run_number:eq=-12", "run_number=name", "run_number:ne=3,12"),
        *("user_name:li=m%x", "user_name:li=matia", "user_name:co=MAT", "user:eq=mati", "run_id:eq=x", "run_id:co=x"),
        *("status=failed", "status=lost,running", "status:ne=completed", "ts_epoch:gt=1000500", "finished_at:gt=0"),
        *("_tags=blue,red", "_tags:any=red,green", "_tags:likeall=blu,green", "user_name:is=null", "run_id:ne=null"),
        *("user_name:li=matias%matias", "run_number=12&user_name=other"),
    ],
)
def test_filters_that_drop_a_run(dropped):
    assert not asked(*dropped.split("&")).keeps(RUN)


def test_the_store_is_asked_for_what_it_has_an_index_of():
    query = asked("status=completed", "user_name=ann", "_tags=a,b", "ts_epoch:ge=2000", "ts_epoch:le=5000", "user=ann")
    assert query.which == RunFilter("succeeded", 2.0, 5.001, "ann", ("a", "b", "user:ann"))
    assert asked("status=failed", "user_name=a,b", "_tags:any=a,b", "ts_epoch:ne=1").which == RunFilter()


@pytest.mark.parametrize(
    "wrong",
    [
        *("run_number:xx=1", "nonsense=1", "run_number:lt=abc", "ts_epoch=now", "ts_epoch:ge=9999999999999999999999"),
        *("status=odd", "status:lt=failed", "user:co=ann", "user_name:is=ann", "user_name=", "_tags:none=a", "_tags=,"),
        *("_limit=0", "_limit=-1", "_limit=many", f"_limit={MAX_LIMIT + 1}", "_limit=99999999999999999999", "_page=2"),
        *(
            "user_name=a\0b",
            "user_name=\ud800",
            "user_name=" + "x" * 3000,
            "system_tags=x",
            ":eq=1",
            "=",
            "user_name:=a:",
        ),
        "user_name=" + ",".join("abc" * 70),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    if wrong == "user_name:=a:":
        assert asked(wrong).keeps({**RUN, "user_name": "a:"})  # no operator is the usual one
        return
    with pytest.raises(UsageError):
        asked(wrong)


def test_too_many_filters_are_refused():
    with pytest.raises(UsageError, match="too many"):
        asked(*["run_number:ne=1"] * 21)
