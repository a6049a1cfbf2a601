import torch

from pdd_lightning.augment import ZCA


def test_whitening_and_restoring(reference):
    arrays = reference("zca")
    zca = ZCA.fit(arrays["fit_images"], eps=float(arrays["eps"]))
    whitened = zca.whiten(arrays["fit_images"][:5])
    torch.testing.assert_close(whitened, arrays["whitened_first5"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zca.restore(whitened), arrays["restored_first5"], rtol=1e-4, atol=1e-5)
