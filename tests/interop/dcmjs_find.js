// C-FIND with dcmjs-dimse: node dcmjs_find.js MODULES HOST PORT LEVEL JSON
// JSON maps keywords to values. Prints one line of JSON for each response; exit code 0 when the last is a success.
'use strict';

const [modules, host, port, level, json] = process.argv.slice(2);
const dimse = require(require.resolve('dcmjs-dimse', { paths: [modules] }));
const { CFindRequest } = dimse.requests;
const { Status } = dimse.constants;

dimse.log.setLevel('error');
const create = {
  STUDY: CFindRequest.createStudyFindRequest,
  SERIES: CFindRequest.createSeriesFindRequest,
  IMAGE: CFindRequest.createImageFindRequest,
}[level];
const request = create(JSON.parse(json));
let last = null;
request.on('response', (response) => {
  last = response.getStatus();
  const found = response.hasDataset() ? response.getDataset().getElements() : null;
  console.log(JSON.stringify({ status: last, found }));
});
const client = new dimse.Client();
client.addRequest(request);
client.on('networkError', (error) => {
  console.log(JSON.stringify({ error: String(error) }));
  process.exitCode = 1;
});
client.on('closed', () => {
  if (last !== Status.Success) process.exitCode = 1;
});
client.send(host, Number(port), 'DCMJS', 'SCP_SERVER');
