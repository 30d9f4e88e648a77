// Timers, promises, streams, worker threads, a server on a unix socket and files, all at once; nothing is lost or doubled.
'use strict';
const { createHash } = require('crypto');
const fs = require('fs');
const net = require('net');
const { Worker, isMainThread, parentPort } = require('worker_threads');

const sha256 = (text) => createHash('sha256').update(text).digest('hex');

if (!isMainThread) {
  parentPort.on('message', (number) => parentPort.postMessage([number, sha256(`buffer ${number}`.repeat(500))]));
} else {
  const wrong = [];
  const counts = { hashes: 0, echoes: 0, ticks: 0, files: 0 };
  const done = () => fs.existsSync('/work/check');
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  let before = process.hrtime.bigint();

  const hashing = async (worker) => {
    for (let number = 0; !done(); number++) {
      const answer = new Promise((resolve) => worker.once('message', resolve));
      worker.postMessage(number);
      const [back, hash] = await answer;
      if (back !== number || hash !== sha256(`buffer ${number}`.repeat(500))) wrong.push(`hash ${number}`);
      counts.hashes++;
    }
    await worker.terminate();
  };

  const echoing = async () => {
    const server = net.createServer((socket) => socket.pipe(socket));
    await new Promise((resolve) => server.listen('/tmp/echo', resolve));
    const client = net.connect('/tmp/echo');
    let [sent, received] = ['', ''];
    client.setEncoding('utf8').on('data', (text) => { received += text; });
    for (let number = 0; !done(); number++) {
      const text = `${number} `.repeat(1000);
      sent = (sent + text);
      client.write(text);
      while (received.length < sent.length) await pause(1);
      if (received !== sent) wrong.push(`echo ${number}`);
      [sent, received] = ['', ''];
      counts.echoes++;
    }
    client.end();
    server.close();
  };

  const ticking = async () => {
    while (!done()) {
      await pause(5);
      const now = process.hrtime.bigint();
      if (now < before) wrong.push('time goes back');
      before = now;
      if (++counts.ticks === 40) fs.writeFileSync('/work/ready', '');
      fs.writeFileSync('/work/progress', `${counts.ticks}`);
    }
  };

  const writing = async () => {
    const file = await fs.promises.open('/work/lines', 'a+');
    while (!done()) await file.write(`line ${counts.files++}\n`);
    await file.close();
    const lines = fs.readFileSync('/work/lines', 'utf8').trimEnd().split('\n');
    if (lines.length !== counts.files || lines.some((line, number) => line !== `line ${number}`)) wrong.push('lines');
  };

  Promise.all([hashing(new Worker(__filename)), hashing(new Worker(__filename)), echoing(), ticking(), writing()])
    .catch((error) => wrong.push(String(error.stack)))
    .finally(() => {
      for (const [what, count] of Object.entries(counts)) if (count < 3) wrong.push(`only ${count} ${what}`);
      fs.writeFileSync('/work/out', wrong.join('\n') || 'ok\n');
      process.exit(wrong.length ? 1 : 0);
    });
}
