//! Contexts against real TLS stacks: rustls in memory, and the client of OpenSSL.

mod authority;
mod client_certificates;
mod handshake;
mod openssl;
mod pooled;
mod real_servers;
mod resumption;
mod versions;
mod which_certificate;
