// Calls a cellstate server from Node.js with nothing but its proto files: no generated code.
//
//     npm install && node index.js [host:port]

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const ADDRESS = process.argv[2] || process.env.CELLSTATE_ADDRESS || "localhost:50051";
const ROOT = path.join(__dirname, "..", "..");

const { cellstate } = grpc.loadPackageDefinition(
  protoLoader.loadSync("cellstate/v1/inference.proto", {
    includeDirs: [path.join(ROOT, "proto")],
    longs: String, // positions and seeds have 64 bits
    enums: String,
    oneofs: true,
  }),
);
const client = new cellstate.v1.InferenceService(ADDRESS, grpc.credentials.createInsecure());
const deadline = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

/** Values travel as raw little-endian bytes, time first: [steps, features]. */
function toTensor(rows) {
  const data = Buffer.alloc(4 * rows.length * rows[0].length);
  rows.flat().forEach((value, index) => data.writeFloatLE(value, 4 * index));
  return { tensor: { dtype: "DATA_TYPE_FLOAT32", shape: [rows.length, rows[0].length], data } };
}

function fromTensor({ data }) {
  return Array.from({ length: data.length / 4 }, (_, index) => data.readFloatLE(4 * index));
}

/** One value in, one value out: unary. */
function readDigit() {
  const [, line] = fs.readFileSync(path.join(ROOT, "examples", "data", "digits.csv"), "utf8").split("\n");
  const [label, ...pixels] = line.split(",").map(Number);
  return new Promise((resolve, reject) => {
    const request = { target: { model: "digits" }, input: toTensor([pixels]) };
    client.oneToOne(request, deadline(30), (error, response) => {
      if (error) return reject(error);
      const probability = Math.max(...fromTensor(response.output.values.tensor));
      console.log(`a ${label} is read as ${response.output.labels[0]}, with probability ${probability.toFixed(2)}`);
      return resolve();
    });
  });
}

/** A prompt predicts a sequence: server streaming. */
async function speak() {
  const call = client.oneToMany(
    {
      target: { model: "shakespeare" },
      input: { text: "ROMEO:" },
      generation: { maxSteps: 200, sampling: { temperature: 0.8, seed: "7" } },
    },
    deadline(120),
  );
  process.stdout.write("ROMEO:");
  for await (const { output, completion } of call) {
    if (output && output.values) process.stdout.write(output.values.text);
    if (completion) console.log(`\n[${completion.reason}, ${completion.generatedSteps} steps, seed ${completion.seed}]`);
  }
}

async function main() {
  await readDigit();
  await speak();
}

main()
  .catch((error) => {
    console.error(error.details || error.message);
    process.exitCode = 1;
  })
  .finally(() => client.close());
