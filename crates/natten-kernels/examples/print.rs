//! Prints the text of a kernel, or the kernels there are: `cargo run -p natten-kernels --example print -- [NAME]`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        for kernel in natten_kernels::KERNELS {
            println!("{}", kernel.entry);
        }
        return ExitCode::SUCCESS;
    };
    let Some(kernel) = natten_kernels::by_name(&name) else {
        eprintln!("no kernel is called {name}");
        return ExitCode::FAILURE;
    };
    print!("{}", kernel.ptx());
    ExitCode::SUCCESS
}
