"""Packs records by two implementations of the aggregation that are not ours.

Their output is checked in as aggregated.json, so that no test needs them:

    python3 -m venv made && made/bin/pip install aws_kinesis_agg==1.2.3 six
    npm install --prefix made aws-kinesis-agg@4.2.8
    made/bin/python tests/vectors/aggregated.py made/node_modules > tests/vectors/aggregated.json
"""

import json
import subprocess
import sys

from aws_kinesis_agg.aggregator import RecordAggregator

LAST = str(2**128 - 1)

# Lists of records: a partition key, an explicit hash key or none, and a payload in hex.
CASES = {
    "one": [["customer-7", None, b"a red one".hex()]],
    "neighbours with one key": [["key", None, bytes([i]).hex()] for i in range(20)],
    "many keys": [[f"key-{i % 7}", None, f"record {i}".encode().hex()] for i in range(300)],
    "explicit hash keys": [
        ["a", "0", b"first".hex()],
        ["b", None, b"by its key".hex()],
        ["a", LAST, b"last".hex()],
        ["c", str(2**127), b"middle".hex()],
        ["c", "0", b"first again".hex()],
    ],
    "keys in other scripts": [["ключ", None, b"one".hex()], ["鍵", None, "鍵".encode().hex()]],
    "bytes that are no text": [["k", None, bytes(range(256)).hex()]],
    "a long one": [["k", None, (b"0123456789" * 300).hex()], ["l", None, b"short".hex()]],
}

# It asks for no empty payload, so there is none in its cases.
NODE = """
const { aggregate } = require('aws-kinesis-agg');
const read = JSON.parse(require('fs').readFileSync(0));
const done = read.map((records) => new Promise((resolve, reject) => {
  const list = records.map(([partitionKey, explicitHashKey, data]) => ({
    partitionKey, explicitHashKey: explicitHashKey ?? undefined, data: Buffer.from(data, 'hex'),
  }));
  aggregate(list, (packed) => resolve(packed.data.toString('hex')), () => {}, reject);
}));
Promise.all(done).then((packed) => console.log(JSON.stringify(packed)));
"""


def by_python(records):
    aggregator = RecordAggregator()
    for key, hash_key, data in records:
        aggregator.add_user_record(key, bytes.fromhex(data), hash_key)
    return aggregator.clear_and_get().get_contents()[2].hex()


def by_node(cases, modules):
    script = subprocess.run(
        ["node", "-e", NODE],
        input=json.dumps(cases),
        capture_output=True,
        check=True,
        text=True,
        env={"NODE_PATH": modules, "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    return json.loads(script.stdout)


def main():
    empty = {"payloads of nothing": [["k", None, ""], ["k", None, "00"], ["l", None, ""]]}
    vectors = [
        {"by": "aws_kinesis_agg 1.2.3", "what": what, "records": records, "packed": by_python(records)}
        for what, records in {**CASES, **empty}.items()
    ]
    packed = by_node(list(CASES.values()), sys.argv[1])
    vectors += [
        {"by": "aws-kinesis-agg 4.2.8", "what": what, "records": records, "packed": one}
        for (what, records), one in zip(CASES.items(), packed)
    ]
    lines = (json.dumps(vector, ensure_ascii=False) for vector in vectors)
    print("[\n" + ",\n".join(lines) + "\n]")


if __name__ == "__main__":
    main()
