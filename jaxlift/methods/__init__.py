"""Methods that are no rules: functions with `jaxlift.attribute`'s signature, so that one name swaps them."""
