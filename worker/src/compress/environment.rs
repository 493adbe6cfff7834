//! What machine measured: int8 figures mean nothing without the processor's instruction sets.

use lithe::artifact::Environment;

/// Instruction sets that decide which integer kernels the runtime takes.
const DECISIVE: [&str; 15] = [
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
];

/// Describes this machine.
pub fn read(worker: &str, onnxruntime: &str, threads: usize) -> Environment {
    let (cpu, isa) = parse(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    Environment {
        worker: worker.to_owned(),
        onnxruntime: onnxruntime.to_owned(),
        cpu,
        isa,
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
    }
}

/// Model name and decisive instruction sets of the first processor in `/proc/cpuinfo`.
fn parse(text: &str) -> (String, Vec<String>) {
    let value = |keys: &[&str]| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            keys.contains(&key.trim()).then(|| value.trim())
        })
    };
    let flags: Vec<&str> =
        value(&["flags", "Features"]).unwrap_or_default().split_whitespace().collect();
    let isa = DECISIVE.iter().filter(|set| flags.contains(*set)).map(|set| (*set).to_owned());
    (value(&["model name", "CPU part"]).unwrap_or("unknown").to_owned(), isa.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_are_understood() {
        let x64 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n";
        assert_eq!(parse(x64), ("AMD EPYC".into(), vec!["avx2".into(), "avx512_vnni".into()]));
        let arm = "processor: 0\nFeatures: fp asimd asimddp\nCPU part: 0xd40\n";
        assert_eq!(parse(arm), ("0xd40".into(), vec!["asimd".into(), "asimddp".into()]));
        assert_eq!(parse(""), ("unknown".into(), vec![]));
    }
}
