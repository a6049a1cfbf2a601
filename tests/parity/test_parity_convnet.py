import torch


def test_parameters_have_the_reference_order(reference_convnet, reference_names):
    assert [name for name, _ in reference_convnet.named_parameters()] == reference_names


def test_features_and_logits(reference, reference_convnet, reference_params):
    arrays = reference("convnet")
    reference_convnet.load_state_dict(reference_params)
    torch.testing.assert_close(reference_convnet.features(arrays["images"]), arrays["features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reference_convnet(arrays["images"]), arrays["logits"], rtol=1e-4, atol=1e-5)
