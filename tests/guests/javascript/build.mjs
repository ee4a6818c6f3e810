// node build.mjs OUT: makes a component of app.js. Resolves componentize-js from the working directory.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));
const folder = join(process.cwd(), 'node_modules/@bytecodealliance/componentize-js');
const { exports } = JSON.parse(await readFile(join(folder, 'package.json')));
const { componentize } = await import(pathToFileURL(join(folder, exports.import)));
const { component } = await componentize({
  sourcePath: join(here, 'app.js'),
  witPath: join(here, '../../../wit'),
  worldName: 'stateless-job',
  // Clocks, randomness and the network are not a job's to have.
  disableFeatures: ['stdio', 'random', 'clocks', 'http', 'fetch-event'],
});
await writeFile(process.argv[2], component);
