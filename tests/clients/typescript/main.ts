// The main calls, typed by what openapi-typescript makes of the server's document.
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Adapter = components["schemas"]["AdapterObject"];

const [url, folder] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: url });

function given<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

const inputs = "I love this film.";
const query = { adapter: ["sentiment"] };
const vectors = given(await client.POST("/embed", { params: { query }, body: { inputs } }));
const labels = given(await client.POST("/classify", { params: { query }, body: { inputs } }));
const openai = given(
  await client.POST("/v1/embeddings", { body: { model: "sentiment", input: inputs } }),
);

const path = { name: "typed" };
const put: Adapter = given(
  await client.PUT("/adapters/{name}", {
    params: { path, query: { alpha: 16 } },
    body: "",
    bodySerializer: () => readFileSync(`${folder}/adapter_model.safetensors`),
    headers: { "Content-Type": "application/octet-stream" },
  }),
);
const listed: Adapter[] = given(await client.GET("/adapters"));
const history = given(await client.GET("/adapters/{name}/versions", { params: { path } }));
await client.DELETE("/adapters/{name}", { params: { path } });
const gone = await client.GET("/adapters/{name}", { params: { path } });

console.log(
  JSON.stringify({
    vectors,
    labels,
    embedding: openai.data[0]?.embedding,
    scale: put.scale,
    names: listed.map((adapter) => adapter.name),
    versions: history.map((entry) => entry.version === put.version && entry.current),
    refused: gone.error?.error_type,
  }),
);
