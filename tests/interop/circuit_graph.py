"""A small attribution graph as circuit-tracer writes it, to circuit_graph.json for test_circuit_tracer.py.

python tests/interop/circuit_graph.py   # with circuit-tracer 0.5.0, in a venv of its own
"""

import json
from pathlib import Path

TOKENS = ["<bos>", "The", " capital", " of", " \u202eTexas", " is"]
LAYERS = 4


def main() -> None:
    from circuit_tracer.frontend.graph_models import Metadata, Model, Node, QParams

    nodes = [
        Node.token_node(1, 464, influence=0.2),
        Node.token_node(4, 3936, influence=0.4),
        Node.feature_node(0, 4, 7001, influence=0.6, activation=12.5),
        Node.feature_node(2, 5, 131071, influence=0.8, activation=3.25),
        Node.error_node(3, 5, influence=0.9),
        Node.logit_node(5, 9533, " Austin", LAYERS, target_logit=True, token_prob=0.625),
    ]
    ids = [node.node_id for node in nodes]
    links = [(0, 2, 0.5), (1, 2, 2.0), (2, 3, -1.5), (3, 5, 4.0), (4, 5, 0.25), (1, 5, -0.125)]
    model = Model(
        metadata=Metadata(
            slug="capital", scan="gpt-oss-20b", transcoder_list=[], prompt_tokens=TOKENS, prompt="".join(TOKENS[1:])
        ),
        qParams=QParams(
            pinnedIds=[ids[3]], supernodes=[["say Austin", ids[2], ids[3]]], linkType="both", clickedId="", sg_pos=""
        ),
        nodes=nodes,
        links=[{"source": ids[a], "target": ids[b], "weight": weight} for a, b, weight in links],
    )
    (Path(__file__).parent / "circuit_graph.json").write_text(
        json.dumps(model.model_dump(mode="json"), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
