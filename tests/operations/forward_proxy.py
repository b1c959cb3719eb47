"""A company's network: an HTTP proxy on the way to every provider, which has its certificates from a private CA."""

import contextlib
import datetime
import http.client
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class PrivateCA:
    """Issues certificates that nobody trusts by himself.

    Args:
        folder: where its files go.

    Attributes:
        bundle: the file that `SSL_CERT_FILE` is to name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A private CA")])
        self.bundle = folder / "ca.pem"
        certificate = self._certificate(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context_for(self, host: str) -> ssl.SSLContext:
        """Return what a server needs that is `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._certificate(name, key, x509.SubjectAlternativeName([x509.DNSName(host)]))
        file = self._folder / f"{host}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .add_extension(key_id, critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )


class ForwardProxy:
    """An HTTP proxy that leads to one provider, whichever host is asked for; a context manager.

    Args:
        provider: base URL of the provider, which speaks plain HTTP.
        ca: where hosts have their certificates from.

    Attributes:
        url: what `HTTPS_PROXY` and `HTTP_PROXY` are to be.
        asked: the hosts that were asked for, with their ports.
    """

    def __init__(self, provider: str, ca: PrivateCA) -> None:
        self.asked: list[str] = []
        proxy = self
        target = urlsplit(provider)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                proxy.asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                context = ca.context_for(self.path.partition(":")[0])
                with (
                    contextlib.suppress(OSError),  # a client that doesn't trust the certificate leaves
                    context.wrap_socket(self.connection, server_side=True) as client,
                    socket.create_connection((target.hostname, target.port)) as upstream,
                ):
                    threading.Thread(target=_pass_on, args=[client, upstream], daemon=True).start()
                    _pass_on(upstream, client)

            def do_POST(self) -> None:
                proxy.asked.append(urlsplit(self.path).netloc)
                body = self.rfile.read(int(self.headers["content-length"]))
                connection = http.client.HTTPConnection(target.netloc)
                with contextlib.closing(connection):
                    headers = {
                        k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")
                    }
                    connection.request("POST", urlsplit(self.path).path, body, headers)
                    answer = connection.getresponse()
                    content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["content-type"])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _pass_on(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while packet := source.recv(65536):
            destination.sendall(packet)
        destination.shutdown(socket.SHUT_WR)
