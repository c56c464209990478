# shellcheck shell=bash disable=SC2154
# Sourced by ./dev: trains the runs behind the figures of H. Liu, arXiv 2411.17278, and draws them. NC metrics and training
# accuracy against the epoch for L = 1, 3, 6 linear layers: 1 CIFAR-10 with bias, 2 EMNIST with bias, 3 and 4 the same
# without. An interrupted call goes on where it was.

figures_usage() {
  cat <<'EOF'
usage: ./dev figures [--quick | --theory] [--data DIR] [--device cpu|cuda] [--out DIR] [--jobs N]

  (neither)     width 2048, 12000 epochs, lr 1e-4 cut to a tenth at half, lambda 1e-5: a GPU's work
  --quick       width 256, 600 epochs, lr 5e-4: under 25 minutes on 2 cores; MNIST stands in where there is no EMNIST
  --theory      the runs of docs/figures that meet the predicted minimiser, or stop in a point of lower rank
  --data DIR    folder with cifar10/ (data_batch_*.bin, test_batch.bin) and emnist/ (emnist-balanced-*-ubyte.gz), for
                --quick mnist/ will do (train-*-ubyte.gz, t10k-*-ubyte.gz); default $NCOLLAPSE_DATA, else ../shared/data
  --device D    default cpu for --quick and --theory, cuda else
  --out DIR     default out/figures-quick, out/figures-theory or out/figures
  --jobs N      runs at a time; default: on the CPU 2, on a GPU 1
EOF
}

figures_data_missing() {
  die "no $1 in $data/ ($2). Get
  CIFAR-10, binary version: https://www.cs.toronto.edu/~kriz/cifar.html, unpacked to DIR/cifar10/
  EMNIST, binary format:    https://www.nist.gov/itl/products-and-services/emnist-dataset, unpacked to DIR/emnist/
  MNIST:                    http://yann.lecun.com/exdb/mnist/, to DIR/mnist/
and name DIR by --data DIR or NCOLLAPSE_DATA"
}

# train NAME ARGS...: in the background, at most $jobs_at_a_time at once.
figures_train() {
  local name=$1
  shift
  while (($(jobs -rp | wc -l) >= at_a_time)); do wait -n || true; done
  (
    "$train_mlp" --device "$device" --threads "$threads" --measure-every "$every" --log "$out/$name.jsonl" \
      --checkpoint "$out/$name.pt" --resume --quiet "$@" 2>"$out/$name.err" ||
      { echo "dev: run $name failed:" >&2; cat "$out/$name.err" >&2; exit 1; }
    say "trained $name  ($(date +%T))"
  ) &
  runs+=($!)
}

# All of them, also where one has failed: nothing goes on in the background that the next call would do as well.
figures_wait() {
  local run failed=0
  for run in "${runs[@]}"; do wait "$run" || failed=1; done
  [[ $failed -eq 0 ]] || die 'a run failed, or was interrupted; the same call goes on from there'
}

# draw FIGURE PICTURE RUN...: one picture of these runs as FIGURE.svg
figures_draw() {
  local figure=$1 picture=$2 logs=()
  shift 2
  for run in "$@"; do logs+=("$out/$run.jsonl"); done
  "$ncollapse" plot "${logs[@]}" --out "$out/$figure" >/dev/null
  cp "$out/$figure/$picture.svg" "$out/$figure.svg"
  say "drawn: $out/$figure.svg"
}

# L = 1 meets the minimiser from any start. For L >= 2 a direction that is small when its weight decay takes over is lost, so
# the linear layers start larger; from the usual start training ends in a point of lower rank. Fewer images, shorter epochs.
figures_theory() {
  local settings=(--width 256 --lr 1e-3 --decay-at 0.6 --lambda-w 1e-3 --lambda-h 1e-3)
  local fewer=(--counts 100,100,80,80,60,60,40,40,20,20 --epochs 2500)
  figures_train theory-L1 "${cifar[@]}" --counts "$counts" "${settings[@]}" --layers 1 --epochs 2200
  figures_train theory-L3 "${cifar[@]}" "${fewer[@]}" "${settings[@]}" --layers 3 --head-scale 3
  figures_train theory-L6 "${cifar[@]}" "${fewer[@]}" "${settings[@]}" --layers 6 --head-scale 2
  figures_train lower-rank-L3 "${cifar[@]}" "${fewer[@]}" "${settings[@]}" --layers 3
  figures_wait
  figures_draw theory-L1 collapse theory-L1
  figures_draw theory collapse theory-L1 theory-L3 theory-L6
  local run
  for run in theory-L1 theory-L3 theory-L6 lower-rank-L3; do figures_draw "$run-spectrum" spectrum "$run"; done
}

figures() {
  local mode=full data=${NCOLLAPSE_DATA:-../shared/data} device='' out='' at_a_time='' every threads runs=()
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick) mode=quick ;;
      --theory) mode=theory ;;
      --data | --device | --out | --jobs)
        [[ $# -gt 1 ]] || { figures_usage >&2; die "$1 needs a value"; }
        case $1 in --data) data=$2 ;; --device) device=$2 ;; --out) out=$2 ;; --jobs) at_a_time=$2 ;; esac
        shift
        ;;
      -h | --help) figures_usage; return ;;
      *) figures_usage >&2; die "figures: unknown option '$1'" ;;
    esac
    shift
  done
  [[ -n $device ]] || { [[ $mode == full ]] && device=cuda || device=cpu; }
  [[ -n $out ]] || { [[ $mode == full ]] && out=out/figures || out=out/figures-$mode; }
  [[ -f $data/cifar10/data_batch_1.bin ]] || figures_data_missing CIFAR-10 cifar10/data_batch_1.bin
  local letters=emnist
  if ! compgen -G "$data/emnist/emnist-balanced-train-images-idx3-ubyte*" >/dev/null; then
    [[ $mode != full ]] || figures_data_missing EMNIST 'emnist/emnist-balanced-train-images-idx3-ubyte.gz'
    letters=mnist
    [[ $mode != quick ]] || compgen -G "$data/mnist/train-images-idx3-ubyte*" >/dev/null ||
      figures_data_missing 'EMNIST, and no MNIST' mnist/train-images-idx3-ubyte.gz
  fi

  setup
  configure
  cmake --build "$build" -j "$jobs" --target ncollapse ncollapse_command
  local prefix=$PWD/$build/figures/prefix
  cmake --install "$build" --prefix "$prefix" >/dev/null
  cmake -S examples/train_mlp -B "$build/figures/train_mlp" -G Ninja --log-level=NOTICE \
    "-DCMAKE_PREFIX_PATH=$prefix;${CMAKE_PREFIX_PATH-}"
  cmake --build "$build/figures/train_mlp" -j "$jobs"
  local train_mlp=$build/figures/train_mlp/train_mlp ncollapse=$prefix/bin/ncollapse
  mkdir -p "$out"
  [[ -n $at_a_time ]] || { [[ $device == cpu && $jobs -gt 1 ]] && at_a_time=2 || at_a_time=1; }
  threads=$((jobs / at_a_time > 0 ? jobs / at_a_time : 1))
  export OMP_WAIT_POLICY=passive  # the runs share the cores
  local counts=500,500,400,400,300,300,200,200,100,100 start=$SECONDS layers bias
  local cifar=(--dataset cifar10 --data "$data/cifar10")
  say "training in $out/, $at_a_time at a time with $threads thread(s) each on $device; ./dev figures again goes on after an interrupt"

  if [[ $mode == theory ]]; then
    every=10
    figures_theory
  else
    local settings=(--lambda-w 1e-5 --lambda-h 1e-5 --decay-at 0.5)
    if [[ $mode == quick ]]; then
      every=10
      settings+=(--width 256 --epochs 600 --lr 5e-4)
    else
      every=100
      settings+=(--width 2048 --epochs 12000 --lr 1e-4)
    fi
    local other=(--dataset "$letters" --data "$data/$letters" --counts "$counts")
    for bias in '' --no-bias; do
      for layers in 6 3 1; do
        figures_train "cifar10${bias#-}-L$layers" "${cifar[@]}" --counts "$counts" "${settings[@]}" --layers "$layers" $bias
        figures_train "$letters${bias#-}-L$layers" "${other[@]}" "${settings[@]}" --layers "$layers" $bias
      done
    done
    figures_wait
    figures_draw figure-1-cifar10-bias collapse cifar10-L1 cifar10-L3 cifar10-L6
    figures_draw "figure-2-$letters-bias" collapse "$letters-L1" "$letters-L3" "$letters-L6"
    figures_draw figure-3-cifar10-no-bias collapse cifar10-no-bias-L1 cifar10-no-bias-L3 cifar10-no-bias-L6
    figures_draw "figure-4-$letters-no-bias" collapse "$letters-no-bias-L1" "$letters-no-bias-L3" "$letters-no-bias-L6"
  fi
  say "done in $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
}
