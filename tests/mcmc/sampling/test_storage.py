import numpy as np
import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.sampling.storage import Memory


def density(position):
    return -0.5 * position["x"].square().sum((-1, -2)) - position["y"].square()


START = {"x": torch.zeros(3, 2, 2, dtype=torch.float64), "y": torch.zeros(3)}


def run(collector, number=25, **settings):
    g = torch.Generator().manual_seed(0)
    return mcmc.run(
        mcmc.SGLD(lr=0.1), density, START, num_samples=number, burn_in=3, generator=g, collector=collector, **settings
    )


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_disk_and_memory_hold_the_same(tmp_path, chunk):
    on_disk, in_memory = run(mcmc.Disk(tmp_path, chunk=chunk)), run(None)
    for first, second in ((on_disk.samples, in_memory.samples), (on_disk.info, in_memory.info)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(first[name].dtype == second[name].dtype for name in first)
    assert np.load(tmp_path / "x.npy").shape == (25, 3, 2, 2)
    assert mcmc.rhat(on_disk.samples["x"]).shape == (2, 2)


def test_a_chunk_at_most_is_held_and_files_can_be_read_meanwhile(tmp_path):
    collector, seen = mcmc.Disk(tmp_path, chunk=4), []

    def watched(position):
        seen.append((len(collector.held.samples), collector.written))
        if collector.written:
            assert len(np.load(tmp_path / "y.npy")) == collector.written
        return density(position)

    g = torch.Generator().manual_seed(0)
    mcmc.run(mcmc.SGLD(lr=0.1), watched, START, num_samples=40, burn_in=0, generator=g, collector=collector)
    assert max(held for held, _ in seen) == 3 and seen[-1] == (3, 36) and collector.written == 40


def test_a_checkpoint_beside_a_folder_does_not_grow(tmp_path):
    sizes = []
    for number in (10, 400):
        run(mcmc.Disk(tmp_path / str(number)), number, checkpoint=tmp_path / f"{number}.ckpt")
        sizes.append((tmp_path / f"{number}.ckpt").stat().st_size)
    assert sizes[1] < sizes[0] + 200


def test_more_samples_continue_in_the_same_folder(tmp_path):
    for number in (10, 17):
        chain = run(mcmc.Disk(tmp_path / "draws"), number, checkpoint=tmp_path / "run")
    assert torch.equal(chain.samples["x"], run(None, 17).samples["x"])


def test_the_draws_of_another_run_are_not_overwritten(tmp_path):
    run(mcmc.Disk(tmp_path))
    with pytest.raises(ValueError, match="holds draws already"):
        run(mcmc.Disk(tmp_path))


def test_a_checkpoint_knows_where_its_draws_are(tmp_path):
    run(mcmc.Disk(tmp_path / "draws"), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="differs in the collector"):
        run(None, checkpoint=tmp_path / "run")


def test_a_collector_of_ones_own(generator):
    class Sum(Memory):
        """Keeps the running sum alone."""

        def add(self, position, info):
            total = self.samples[0]["y"] if self.samples else 0
            self.samples, self.infos = [{"y": total + position["y"]}], [info]

    assert torch.allclose(run(Sum()).samples["y"][:, 0], run(None).samples["y"].sum(1))
