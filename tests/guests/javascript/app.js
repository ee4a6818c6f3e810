// A job in JavaScript: keeps the rows whose `id` is even. No library, straight on wit/.

import { forward } from 'tidemill:job/output@0.1.1';
import { log } from 'tidemill:job/logging@0.1.1';

const field = { name: 'id', data_type: 'int64' };
const inherited = { field, origin: { input: { input: 0, column: 0 } } };

const plan = {
  version: 1,
  name: 'evens',
  nodes: [
    { uid: 'in', name: 'in', outputs: [{ name: 'main', fields: [{ field, origin: 'new' }] }],
      kind: { source: { binding: 'in' } } },
    { uid: 'even', name: 'even', inputs: [{ node: 0, exchange: 'forward', reads: [0] }],
      outputs: [{ name: 'main', fields: [inherited] }], kind: { transform: {} } },
    { uid: 'out', name: 'out', inputs: [{ node: 1, exchange: 'forward' }], kind: { sink: { binding: 'out' } } },
  ],
};

export const lifecycle = {
  plan: () => JSON.stringify(plan),
  open(subtask, config) { log('info', `opened with ${JSON.stringify(config)}`); },
  close() {},
};

export const transform = {
  process(clock, input, batch) {
    const { values } = batch.columns[0];
    // The bytes may lie anywhere in memory; typed arrays want them aligned.
    const ids = new BigInt64Array(values.slice().buffer);
    const rows = new Uint32Array(ids.length);
    let kept = 0;
    ids.forEach((id, row) => { if (id % 2n === 0n) rows[kept++] = row; });
    forward(0, new Uint8Array(rows.buffer, 0, kept * 4), []);
  },
};
