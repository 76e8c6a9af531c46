//! Prints what the sandbox costs, one JSON object a line. Run with `--release`.

mod measure;

fn main() {
    match measure::run() {
        Ok(figures) => figures.iter().for_each(|figure| println!("{figure}")),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
