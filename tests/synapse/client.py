"""A very small Matrix client over one kept-alive loopback connection."""

import http.client
import json
import urllib.parse


class Refused(Exception):
    """Synapse answered, but not with 200."""

    def __init__(self, method, path, status, body):
        super().__init__(f"{method} {path}: {status} {body}")
        self.status = status
        self.body = body


def quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


class Client:
    def __init__(self, port: int, token: str | None = None):
        self.port = port
        self.token = token
        self._connection = None

    def call(self, method, path, body=None, query=None, authorization=None):
        if query:
            path = f"{path}?{urllib.parse.urlencode(query)}"
        headers = {"Content-Type": "application/json"}
        if self.token:
            authorization = f"Bearer {self.token}"
        if authorization:
            headers["Authorization"] = authorization
        data = None if body is None else json.dumps(body).encode()
        status, text = self._exchange(method, path, data, headers)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = text.decode(errors="replace")
        if status != 200:
            raise Refused(method, path, status, answer)
        return answer

    def _exchange(self, method, path, data, headers):
        # A kept-alive connection may have been closed meanwhile: then once more, on a fresh one.
        for last_try in (False, True):
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (http.client.HTTPException, ConnectionError):
                self.close()
                if last_try:
                    raise

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path, **query):
        return self.call("GET", path, query=query)

    def post(self, path, body=None):
        return self.call("POST", path, {} if body is None else body)

    def put(self, path, body):
        return self.call("PUT", path, body)
