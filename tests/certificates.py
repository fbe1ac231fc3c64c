"""Certificates for tests of TLS: an authority, and what it says about whom."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DAY = datetime.timedelta(days=1)


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


class Authority:
    """A certificate authority whose files live in a folder of the test's."""

    def __init__(self, folder: Path, name: str = "the test's authority") -> None:
        self.folder = folder
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key, (), 0, is_authority=True)
        self.path = folder / f"{len(list(folder.iterdir()))}-authority.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        hosts: Sequence[str],
        expires_in_days: int,
        *,
        is_authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(name))
            .issuer_name(name_of(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * DAY)
            .not_valid_after(now + (expires_in_days or 1) * DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
                critical=False,
            )
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *hosts: str, expires_in_days: int = 1) -> Path:
        """A file with a new key and its certificate for these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(hosts[0], key, hosts, expires_in_days)
        path = self.folder / f"{len(list(self.folder.iterdir()))}-{hosts[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def revoke(self, certificate: Path) -> Path:
        """A file with a revocation list that names this certificate."""
        revoked = x509.load_pem_x509_certificate(certificate.read_bytes())
        now = datetime.datetime.now(datetime.UTC)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name_of(self.name))
            .last_update(now - DAY)
            .next_update(now + DAY)
            .add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(revoked.serial_number)
                .revocation_date(now - DAY)
                .build()
            )
            .sign(self.key, hashes.SHA256())
        )
        path = certificate.with_suffix(".crl")
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return path

    def server(self, certificate: Path | None = None) -> ssl.SSLContext:
        """A server's context; without a certificate, one for localhost."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.path))
        context.load_cert_chain(certificate or self.issue("localhost", "127.0.0.1"))
        return context

    def client(self) -> ssl.SSLContext:
        """The context of a client that trusts this authority."""
        return ssl.create_default_context(cafile=str(self.path))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Contexts:
    """A server's context, and a client's that trusts it."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.server = authority.server()
        self.client = authority.client()
