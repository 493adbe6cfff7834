//! How much a model may ask for. Every bound is checked before anything of that size is allocated.

/// Bounds of a model. The defaults leave every published model that fits one protobuf (2 GiB).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of the file and of its external data together. Protobuf, and with it the runtime,
    /// ends at 2 GiB; the rest is room for the fields around the weights.
    pub bytes: u64,
    /// Nodes in all graphs and function bodies, and nodes after all functions are expanded.
    pub nodes: u64,
    /// Tensors. The runtime takes about 2.4 kB for an empty one.
    pub tensors: u64,
    /// Bytes that the decoded messages may take besides the weights.
    pub decoded: u64,
    /// Nested messages: what the runtime's protobuf reader accepts. A graph in a graph takes three.
    pub depth: u32,
    /// Functions that call functions. The runtime recurses over them.
    pub calls: u32,
    /// Bytes of a name.
    pub name: u64,
    /// Dimensions of a tensor.
    pub rank: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            bytes: (2 << 30) - (16 << 20),
            nodes: 200_000,
            tensors: 100_000,
            decoded: 1 << 30,
            depth: 98,
            calls: 64,
            name: 1024,
            rank: 64,
        }
    }
}
