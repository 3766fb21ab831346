"""A web server for the tests of downloads. It listens on a free port of this machine, and prints its number.

range_server.py FOLDER LOG serves FOLDER/NAME under four paths, and writes a line `PATH RANGE` to LOG for every request:
    /whole/NAME     as a normal server, with ranges
    /cut/NAME       the same, but the connection breaks after 1000 bytes
    /norange/NAME   always answers with the whole file, whatever range is requested
    /busy/NAME      answers 503
"""
import http.server
import os
import sys

folder, log = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, kind, name = self.path.split("/", 2)
        asked = self.headers.get("Range")
        with open(log, "a") as file:
            print(self.path, asked or "-", file=file)
        path = os.path.join(folder, name)
        if kind == "busy" or not os.path.isfile(path):
            self.send_error(503 if kind == "busy" else 404)
            return
        with open(path, "rb") as file:
            data = file.read()
        start = int(asked.split("=")[1].split("-")[0]) if asked and kind != "norange" else 0
        if start >= len(data) and start > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:start + 1000] if kind == "cut" else data[start:])

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
