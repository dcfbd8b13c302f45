"""Parses metrics from standard input with the ecosystem's own library, and says what it found."""

import json
import sys

from prometheus_client.parser import text_string_to_metric_families

families = list(text_string_to_metric_families(sys.stdin.read()))
print(
    json.dumps(
        {
            "families": len(families),
            "series": sum(len(family.samples) for family in families),
            "undescribed": sum(not family.documentation or family.type == "unknown" for family in families),
        }
    )
)
