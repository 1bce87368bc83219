// C-FIND with dcmjs-dimse: node dcmjs_find.js MODULES HOST PORT QUERIES
// QUERIES is JSON: [[sop class, {keyword or tag: value}], ...]. Prints a line of JSON for each query:
// {"status": final, "matches": [data sets]}.
'use strict';

const [modules, host, port, queries] = process.argv.slice(2);
const dimse = require(require.resolve('dcmjs-dimse', { paths: [modules] }));
const { CFindRequest } = dimse.requests;
const { Status } = dimse.constants;

dimse.log.setLevel('error');
const client = new dimse.Client();
let left = 0;
for (const [sopClass, elements] of JSON.parse(queries)) {
  left += 1;
  const request = new CFindRequest();
  request.setAffectedSopClassUid(sopClass);
  request.setDataset(new dimse.Dataset(elements));
  const matches = [];
  request.on('response', (response) => {
    if (response.getStatus() === Status.Pending && response.hasDataset()) {
      matches.push(response.getDataset().getElements());
    } else {
      left -= 1;
      console.log(JSON.stringify({ status: response.getStatus(), matches }));
    }
  });
  client.addRequest(request);
}
client.on('networkError', (error) => {
  console.log(JSON.stringify({ error: String(error) }));
  process.exitCode = 1;
});
client.on('closed', () => {
  if (left) process.exitCode = 1;
});
dimse.Transcoding.initializeAsync().then(() => client.send(host, Number(port), 'DCMJS', 'SCP_SERVER'));
