"""Every style a program is written in; importing this package fills the tables of `scope`."""

from . import (  # noqa: F401
    call_functions,
    call_objects,
    calls,
    change_flow,
    change_functions,
    change_statements,
    conditions,
    dict_branches,
    dict_closures,
    dict_displays,
    dict_functions,
    dict_holders,
    dict_objects,
    dict_records,
    imports,
    value_calls,
    value_names,
    value_objects,
    value_operators,
    value_statements,
)
