//! What workers hand to the pool.

use towpath_tls::{Connection, Fault, Step, Work};

/// The step of a handshake that signs: a whole ClientHello is there.
pub struct PooledHandshake {
    /// Whose it is, in the words of the worker.
    pub token: u64,
    /// The connection, which moves.
    pub connection: Connection,
    /// What the client has sent; what is not used stays.
    pub input: Vec<u8>,
    /// What is to be sent to it.
    pub output: Vec<u8>,
    /// What came of it; `None` before.
    pub result: Option<Result<Step, Fault>>,
}

impl Work for PooledHandshake {
    fn run(&mut self) {
        self.result = Some(self.connection.handshake(&mut self.input, &mut self.output));
    }
}
