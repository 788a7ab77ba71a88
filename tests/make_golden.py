"""Write tests/golden/regression.json anew. Show the difference in the commit that needs it."""

import json

from regression import CASES, FILE, measure

numbers = {f"{stack}-{kind}": measure(stack, kind) for stack, kind in CASES}
FILE.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
print(f"wrote {FILE}")
