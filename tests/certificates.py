"""A certificate authority of the tests' own, for servers that speak TLS on this machine."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


EPOCH = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
FAR = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)


@attrs.define
class Authority:
    """Signs certificates for servers; clients that trust it use `client_context`."""

    directory: Path
    _key: ec.EllipticCurvePrivateKey = attrs.Factory(
        lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def _name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this authority and nobody else."""
        basic = x509.BasicConstraints(ca=True, path_length=None)
        signed = self._builder(self._name, self._key, FAR).add_extension(basic, critical=True)
        pem = signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return ssl.create_default_context(cadata=pem.decode())

    def server_context(self, host: str, *, until: dt.datetime = FAR) -> ssl.SSLContext:
        """Return the context of a server that is called `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        hosts = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = self._builder(name, key, until).add_extension(hosts, critical=False)
        certificate = signed.sign(self._key, hashes.SHA256())
        path = self.directory / f"{host}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        return context

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, until: dt.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(EPOCH)
            .not_valid_after(until)
        )
