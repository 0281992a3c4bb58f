"""A body that asks for documents by how well they answer a query, as Cohere, Jina, vLLM and LiteLLM
send it, and the answer that all of them read.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.api.documents import Documents, given_back, text_of
from app.api.inputs import Text
from app.api.refusal import invalid
from app.api.vllm_members import VllmMembers
from app.inference.classify import Scored
from app.inference.read import Texts

SEARCH_UNIT = 100  # documents, as Cohere counts


class DocumentsBody(VllmMembers):
    """Any other member is refused by its name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "Where is my card?", "documents": ["It is late.", "A good film."]}
            ]
        }
    )

    model: str | None = Field(
        None, description="An adapter with a head of one label; none: the only one there is."
    )
    query: Text = Field(min_length=1)
    documents: Documents
    top_n: int | None = Field(None, ge=0, description="Only the best ones; 0: all.")
    return_documents: bool = Field(True, description="Each document beside its score.")
    rank_fields: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)
    max_chunks_per_doc: int | None = Field(None, ge=1, description="A document is one chunk here.")
    max_tokens_per_doc: int | None = Field(
        None, ge=0, description="No fewer than the model reads at all; 0: so many."
    )
    raw_scores: bool = Field(False, description="The head's own numbers, without the sigmoid.")
    use_activation: bool = Field(True, description="false: as raw_scores.")

    def as_pairs(self, max_length: int) -> Texts:
        """Each document behind the query. Raises Refusal for what cannot be honoured.

        max_length: the most tokens that are read of anything.
        """
        if 0 < (self.max_tokens_per_doc or max_length) < max_length:
            raise invalid(
                "max_tokens_per_doc",
                f"is {self.max_tokens_per_doc}, and documents are not cut one by one: query and "
                f"document together are cut to {max_length} tokens; leave it out",
            )
        if self.return_documents and self.shortened:
            raise invalid(
                "return_documents", "is not false beside a text that is too long to be given back"
            )
        return self.as_texts([(self.query, text_of(document)) for document in self.documents])

    @property
    def raw(self) -> bool:
        """Whether the head's own numbers are wanted."""
        return self.raw_scores or not self.use_activation

    def answer(self, scored: Scored, api_version: str) -> dict[str, Any]:
        """The best documents first. A string is given back as {"text"}, an object as it came."""
        tokens = scored.ran.token_count
        results: list[dict[str, Any]] = [
            {"index": i, "relevance_score": value} for i, value in scored.best(self.top_n or None)
        ]
        if self.return_documents:
            for result in results:
                document = self.documents[result["index"]]
                result["document"] = given_back(document)
        return {
            "id": f"rerank-{self.request_id or uuid.uuid4()}",
            "model": scored.ran.choice.distinct[0].spelled,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {
                "api_version": {"version": api_version},
                "billed_units": {"search_units": -(-len(self.documents) // SEARCH_UNIT)},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            },
        }
